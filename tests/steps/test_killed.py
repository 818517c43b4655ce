"""A step that is killed at any of its writes leaves the old champion or the new one whole, and can be run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.steps import STEPS, run_again
from fmnist_tasks.steps.step import result_of
from tests.support.killed_step import run_until_killed
from tests.support.pipeline import Pipeline
from tests.support.processes import start_process, wait_for_exit
from tests.support.synthetic import RUN

ORDER = list(STEPS)


def killed(pipeline: Pipeline, step: str, moment: int) -> bool:
    """Run the step in a process of its own; True if it was killed at that moment, False if it ended before."""
    said = pipeline.home / "said.txt"
    return not wait_for_exit(start_process(said, run_until_killed, step, moment), said)


def rewound(finished_pipeline: Pipeline, step: str) -> None:
    """Take back what the run did from this step on: as if it had just come to it."""
    for later in ORDER[ORDER.index(step) :]:
        finished_pipeline.store.delete(f"runs/{RUN.id}/{later}.json")
        finished_pipeline.store.delete(f"runs/{RUN.id}/{later}-{RUN.parameters.seed}.json")
    if ORDER.index(step) <= ORDER.index("publish"):
        shutil.rmtree(finished_pipeline.store.root / "releases")
    finished_pipeline.forget_champions()


def whole(pipeline: Pipeline) -> None:
    """Whatever a reader finds is complete: every release intact, and the champion one of them."""
    for version in releases.versions(pipeline.store):
        releases.read_files(pipeline.store, releases.read_manifest(pipeline.store, version))
    entry = champion.champion(pipeline.store)
    assert entry is None or entry.version in releases.versions(pipeline.store)


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", ["publish", "promote"])
def test_killed_at_every_write_of_publish_and_promote(finished_pipeline: Pipeline, tmp_path: Path, step: str) -> None:
    expected = service.in_service(finished_pipeline.store).version
    rewound(finished_pipeline, step)
    before = tmp_path / "before"
    shutil.copytree(finished_pipeline.store.root, before)
    moment = 1
    while killed(finished_pipeline, step, moment):
        whole(finished_pipeline)
        for name in ORDER[ORDER.index(step) :]:
            if name != "verify_release":
                run_again(name, RUN)
            elif not finished_pipeline.store.stat(f"runs/{RUN.id}/{name}.json"):
                shutil.copy(tmp_path / "verified.json", finished_pipeline.store.root / "runs" / RUN.id / f"{name}.json")
        assert [entry.version for entry in champion.history(finished_pipeline.store)] == [expected]
        assert releases.versions(finished_pipeline.store) == [expected]
        shutil.rmtree(finished_pipeline.store.root)
        shutil.copytree(before, finished_pipeline.store.root)
        moment += 1
    assert moment > 4  # the step has written at least its record, its report and one thing more


@pytest.fixture(autouse=True)
def verified(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    shutil.copy(finished_pipeline.store.root / "runs" / RUN.id / "verify_release.json", tmp_path / "verified.json")


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [name for name in ORDER if name not in {"publish", "promote"}])
def test_killed_in_the_middle_of_every_other_step(finished_pipeline: Pipeline, step: str) -> None:
    expected = service.in_service(finished_pipeline.store).version
    model = releases.read_manifest(finished_pipeline.store, expected)["model_sha256"]
    trained = result_of(finished_pipeline.store, RUN, "train")
    rewound(finished_pipeline, step)
    assert killed(finished_pipeline, step, 2)
    whole(finished_pipeline)
    assert champion.champion(finished_pipeline.store) is None
    result = run_again(step, RUN)
    if step == "train":
        assert [candidate["model"] for candidate in result] == [candidate["model"] for candidate in trained]
    if step == "fine_tune":
        assert result["candidate"]["model"]["sha256"] == model
