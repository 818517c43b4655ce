"""Publish and promote on a real MinIO, killed (SIGKILL) before a request, halfway into it, and after it.

At every moment readers see the old champion or the new one whole, and a second try completes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.steps import run_again
from tests.support.outbox import close_alerts
from tests.support.pipeline import Pipeline
from tests.support.processes import run_step, start_process, wait_for_exit
from tests.support.proxy import Fault, Proxy, Request
from tests.support.synthetic import RUN

OLD = "20260101T000000Z-0ld"
MOMENTS = ("before", "halfway", "after")


@pytest.fixture(scope="module")
def judged(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, str]:
    """A store with an old champion and a run that has come as far as publishing; the version it is to publish."""
    done = Pipeline(finished_home)
    pipeline = Pipeline(tmp_path_factory.mktemp("judged"))
    version = service.in_service(done.store).version
    old = service.open_release(done.store, version)
    facts = {name: value for name, value in old.manifest.items() if name not in {"version", "files"}}
    releases.publish(pipeline.store, OLD, old.files, facts | {"run_id": "run-0"})
    champion.append(pipeline.store, version=OLD, action="promote", reason="first", write_id="run-0", after=0)
    for stat in done.store.list(""):
        if not stat.key.startswith(("releases/", "champion/")):
            pipeline.store.put(stat.key, done.store.get(stat.key))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        run_again("evaluate_tuned", RUN)
        run_again("promotion_gate", RUN)
    return pipeline.store, version


@pytest.fixture
def ready(judged: tuple[FolderStore, str], pipeline: Pipeline, minio_store: S3Store) -> str:
    """The same in a bucket; the version that the run is to publish."""
    store, version = judged
    for stat in store.list(""):
        minio_store.put(stat.key, store.get(stat.key))
    return version


def whole(store: S3Store, *allowed: str) -> None:
    """What a reader finds: a champion that is one of these, and every release complete."""
    assert service.in_service(store).version in allowed
    for version in releases.versions(store):
        releases.read_files(store, releases.read_manifest(store, version))


def kind(request: Request) -> str:
    """What a request does, to what: `PUT releases/manifest.json`, `GET blobs`, `GET list champion`."""
    address = urlsplit(request.path)
    _, _, *parts = address.path.split("/")  # /bucket/key
    if not any(parts):
        prefix = parse_qs(address.query).get("prefix", [""])[0]
        return f"{request.method} list {prefix.partition('/')[0]}"
    first, last = parts[0], parts[-1]
    named = last in {"manifest.json", "report.html", "model.h5"} or first == "runs"
    return f"{request.method} {first}{f'/{last}' if named and len(parts) > 1 else ''}"


@dataclass
class Killer:
    """Kills the victim, once it is known, at the first request that is the target, at that moment of it."""

    is_target: Callable[[Request], bool]
    moment: str
    victim: Future[int] = field(default_factory=Future)
    done: bool = False

    def __call__(self, request: Request) -> Fault | None:
        if self.done or not self.is_target(request):
            return None
        self.done = True
        return Fault(kill=self.victim.result(), moment=self.moment)


@dataclass(frozen=True)
class Scene:
    """A run that is about to publish or to promote, again and again."""

    step: str
    version: str
    store: S3Store
    proxy: Proxy
    said: Path

    def play(self, killer: Killer | None = None) -> bool:
        """Run the step in a process of its own, and again if it was killed; True if it was."""
        self.proxy.reset(*([killer] if killer else []))
        process = start_process(self.said, run_step, self.step)
        if killer:
            killer.victim.set_result(process.pid or 0)
        killed = not wait_for_exit(process, self.said)
        whole(self.store, OLD, *([self.version] if self.step == "promote" else []))
        if killed:
            self.proxy.reset()
            run_again(self.step, RUN)
        assert releases.versions(self.store) == [OLD, self.version]
        if self.step == "promote":
            assert [entry.version for entry in champion.history(self.store)] == [OLD, self.version]
            for key in ("champion/00000002.json", "champion-receipts/00000002.txt"):
                self.store.delete(key)
        else:
            whole(self.store, OLD)
            for stat in list(self.store.list(f"releases/{self.version}/")):
                self.store.delete(stat.key)
        self.store.delete(f"runs/{RUN.id}/{self.step}.json")
        close_alerts(self.store)
        return killed


@pytest.fixture(params=["publish", "promote"])
def scene(request: pytest.FixtureRequest, ready: str, minio_store: S3Store, proxy: Proxy, tmp_path: Path) -> Scene:
    if request.param == "promote":
        run_again("publish", RUN)
        run_again("verify_release", RUN)
    return Scene(request.param, ready, minio_store, proxy, tmp_path / "said.txt")


@pytest.mark.integration
def test_killed_at_each_kind_of_request(scene: Scene) -> None:
    assert not scene.play()
    # Requests of alerts have tests of their own, tests/alerts/test_trials.py.
    kinds = sorted({one for one in map(kind, scene.proxy.requests) if "alerts" not in one})
    writes = {"publish": {"PUT releases/manifest.json", "PUT releases/model.h5"}, "promote": {"PUT champion"}}
    assert writes[scene.step] | {f"PUT runs/{scene.step}.json", "PUT runs/report.html"} <= set(kinds)
    for one in kinds:
        for moment in MOMENTS:
            assert scene.play(Killer(lambda request, one=one: kind(request) == one, moment)), (one, moment)
    print(f"{scene.step}: killed before, halfway into and after {', '.join(kinds)}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_every_request(scene: Scene, moment: str) -> None:
    kills = 0
    while scene.play(Killer(lambda request, kills=kills: request.number == kills + 1, moment)):
        kills += 1
    print(f"{scene.step}: killed {kills} times {moment} a request")
    assert kills >= {"publish": 30, "promote": 10}[scene.step]
