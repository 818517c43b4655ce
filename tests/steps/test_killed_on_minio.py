"""Publish and promote on MinIO, killed (SIGKILL) before a request, halfway through it, and after it.

At every moment, readers see the old or the new champion, intact, and a second attempt succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.steps import run_step
from tests.support import synthetic
from tests.support.documents import copy_facts
from tests.support.outbox import mark_alerts_delivered
from tests.support.pipeline import Pipeline
from tests.support.processes import run_one_step, start_process, wait_for_exit
from tests.support.proxy import Fault, Proxy, Request

OLD = "20260101T000000Z-0ld"
MOMENTS = ("before", "halfway", "after")


@pytest.fixture(scope="module")
def evaluated_run(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderStore, str]:
    """A store with an old champion and a run that is about to publish, and the version of its release."""
    finished = Pipeline(finished_home)
    pipeline = Pipeline(tmp_path_factory.mktemp("evaluated"))
    synthetic.write_dataset(pipeline.data)
    version = require_champion(finished.store).version
    old = open_release(finished.store, version)
    releases.publish_release(pipeline.store, OLD, old.files, copy_facts(old.manifest, run_id="run-0"))
    champion.append_entry(pipeline.store, version=OLD, action="promote", reason="first", write_id="run-0", after=0)
    for stat in finished.store.list(""):
        if not stat.key.startswith(("releases/", "champion/")):
            pipeline.store.put(stat.key, finished.store.get(stat.key))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        run_step("evaluate_tuned", synthetic.RUN)
        run_step("promotion_gate", synthetic.RUN)
    return pipeline.store, version


@pytest.fixture
def version_to_publish(evaluated_run: tuple[FolderStore, str], pipeline: Pipeline, minio_store: S3Store) -> str:
    """Copy the store into a bucket; return the version that the run is about to publish."""
    store, version = evaluated_run
    for stat in store.list(""):
        minio_store.put(stat.key, store.get(stat.key))
    return version


def check_store(store: S3Store, *champions: str) -> None:
    """Assert that the champion is one of these, and that every release is intact."""
    assert require_champion(store).version in champions
    for version in releases.list_versions(store):
        releases.read_files(store, releases.read_manifest(store, version))


@dataclass
class Killer:
    """Kills the victim at the first target request, at the chosen moment."""

    is_target: Callable[[Request], bool]
    moment: str
    victim: Future[int] = field(default_factory=Future)
    has_killed: bool = False

    def __call__(self, request: Request) -> Fault | None:
        if self.has_killed or not self.is_target(request):
            return None
        self.has_killed = True
        return Fault(kill=self.victim.result(), moment=self.moment)


@dataclass(frozen=True)
class Scenario:
    """A run that can publish or promote any number of times."""

    step: str
    version: str
    store: S3Store
    proxy: Proxy
    output: Path

    def run(self, killer: Killer | None = None) -> bool:
        """Run the step in another process, and again if it was killed; return whether it was."""
        self.proxy.reset(*([killer] if killer else []))
        process = start_process(self.output, run_one_step, self.step)
        if killer:
            killer.victim.set_result(process.pid or 0)
        was_killed = not wait_for_exit(process, self.output)
        check_store(self.store, OLD, *([self.version] if self.step == "promote" else []))
        if was_killed:
            self.proxy.reset()
            run_step(self.step, synthetic.RUN)
        assert releases.list_versions(self.store) == [OLD, self.version]
        if self.step == "promote":
            assert [entry.version for entry in champion.list_entries(self.store)] == [OLD, self.version]
            for key in ("champion/00000002.json", "champion-receipts/00000002.txt"):
                self.store.delete(key)
        else:
            check_store(self.store, OLD)
            for stat in list(self.store.list(f"releases/{self.version}/")):
                self.store.delete(stat.key)
        self.store.delete(f"runs/{synthetic.RUN.id}/{self.step}.json")
        mark_alerts_delivered(self.store)
        return was_killed


@pytest.fixture(params=["publish", "promote"])
def scenario(
    request: pytest.FixtureRequest, version_to_publish: str, minio_store: S3Store, proxy: Proxy, tmp_path: Path
) -> Scenario:
    if request.param == "promote":
        run_step("publish", synthetic.RUN)
        run_step("verify_release", synthetic.RUN)
    return Scenario(request.param, version_to_publish, minio_store, proxy, tmp_path / "output.txt")


@pytest.mark.integration
def test_publish_and_promote_can_be_killed_at_the_deciding_write(scenario: Scenario) -> None:
    decides, *others = {
        "publish": ("manifest.json", "model.h5", "report.html", "publish.json"),
        "promote": ("champion/00000002.json", "report.html", "promote.json"),
    }[scenario.step]
    assert not scenario.run()
    writes = [request.path.partition("?")[0] for request in scenario.proxy.requests if request.method == "PUT"]
    for name in (decides, *others):
        assert any(write.endswith(f"/{name}") for write in writes), name
    for moment in MOMENTS:
        killer = Killer(lambda request: request.method == "PUT" and request.path.endswith(decides), moment)
        assert scenario.run(killer), moment


@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", MOMENTS)
def test_publish_and_promote_can_be_killed_at_every_request(scenario: Scenario, moment: str) -> None:
    kills = 0
    while scenario.run(Killer(lambda request, kills=kills: request.number == kills + 1, moment)):
        kills += 1
    print(f"{scenario.step}: killed {kills} times {moment} a request")
    assert kills >= {"publish": 30, "promote": 10}[scenario.step]
