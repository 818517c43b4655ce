"""Publish and promote on a real MinIO, killed (SIGKILL) at every request: before it, halfway into it, and after it.

At every moment readers see the old champion or the new one whole, and a second try completes.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.steps import run_again
from tests.support.pipeline import Line
from tests.support.processes import apart, run_step, survived
from tests.support.proxy import Harm, Proxy, Request
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration
OLD = "20260101T000000Z-0ld"
MOMENTS = ("before", "halfway", "after")


@pytest.fixture(scope="module")
def judged(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, str]:
    """A store with an old champion and a run that has come as far as publishing; the version it is to publish."""
    done = Line(finished_home)
    line = Line(tmp_path_factory.mktemp("judged"))
    version = service.in_service(done.store).version
    old = service.open_release(done.store, version)
    facts = {name: value for name, value in old.manifest.items() if name not in {"version", "files"}}
    releases.publish(line.store, OLD, old.files, facts | {"run_id": "run-0"})
    champion.append(line.store, version=OLD, action="promote", reason="first", write_id="run-0", after=0)
    for stat in done.store.list(""):
        if not stat.key.startswith(("releases/", "champion/")):
            line.store.put(stat.key, done.store.get(stat.key))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in line.environment.items():
            patch.setenv(name, value)
        run_again("evaluate_tuned", RUN)
        run_again("promotion_gate", RUN)
    return line.store, version


@pytest.fixture
def ready(judged: tuple[FolderStore, str], line: Line, minio: S3Store) -> str:
    """The same in a bucket; the version that the run is to publish."""
    store, version = judged
    for stat in store.list(""):
        minio.put(stat.key, store.get(stat.key))
    return version


def whole(store: S3Store, *allowed: str) -> None:
    """What a reader finds: a champion that is one of these, and every release complete."""
    assert service.in_service(store).version in allowed
    for version in releases.versions(store):
        releases.read_files(store, releases.read_manifest(store, version))


def kill_at(number: int, moment: str, victim: Future[int], request: Request) -> Harm | None:
    """Kill the victim, once it is known, at that request."""
    process = victim.result()
    return Harm(kill=process, moment=moment) if request.number == number else None


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", ["publish", "promote"])
def test_killed_at_every_request(
    ready: str, minio: S3Store, proxy: Proxy, step: str, moment: str, tmp_path: Path
) -> None:
    if step == "promote":
        run_again("publish", RUN)
    kills, number, finished = 0, 0, False
    while not finished:
        number += 1
        victim: Future[int] = Future()
        proxy.reset(partial(kill_at, number, moment, victim))
        process = apart(tmp_path / "said.txt", run_step, step)
        victim.set_result(process.pid or 0)
        finished = survived(process, tmp_path / "said.txt")
        kills += not finished
        whole(minio, OLD, *([ready] if step == "promote" else []))
        if not finished:
            proxy.reset()
            run_again(step, RUN)
        assert releases.versions(minio) == [OLD, ready]
        if step == "promote":
            assert [entry.version for entry in champion.history(minio)] == [OLD, ready]
            minio.delete("champion/00000002.json")
        else:
            whole(minio, OLD)
            for stat in list(minio.list(f"releases/{ready}/")):
                minio.delete(stat.key)
        minio.delete(f"runs/{RUN.id}/{step}.json")
    print(f"{step}: killed {kills} times {moment} a request")
    assert kills >= {"publish": 30, "promote": 10}[step]
