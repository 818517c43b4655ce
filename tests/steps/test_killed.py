"""A step that is killed at any write leaves the old or the new champion intact, and can run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.steps import STEPS, read_result, run_step
from tests.support.killed_step import run_until_killed
from tests.support.pipeline import Pipeline
from tests.support.processes import start_process, wait_for_exit
from tests.support.synthetic import RUN

ORDER = list(STEPS)


def kill_step(pipeline: Pipeline, step: str, moment: int) -> bool:
    """Run the step in another process; return false if it ended before that moment."""
    output = pipeline.home / "output.txt"
    return not wait_for_exit(start_process(output, run_until_killed, step, moment), output)


def delete_from(finished_pipeline: Pipeline, step: str) -> None:
    """Delete the results of this step and all later ones, so that the step is the next one."""
    for later in ORDER[ORDER.index(step) :]:
        finished_pipeline.store.delete(f"runs/{RUN.id}/{later}.json")
        finished_pipeline.store.delete(f"runs/{RUN.id}/{later}-{RUN.parameters.seed}.json")
    if ORDER.index(step) <= ORDER.index("publish"):
        shutil.rmtree(finished_pipeline.store.root / "releases")
    finished_pipeline.clear_champion_log()


def check_store(pipeline: Pipeline) -> None:
    """Assert that every release is intact, and that the champion is one of them."""
    for version in releases.list_versions(pipeline.store):
        releases.read_files(pipeline.store, releases.read_manifest(pipeline.store, version))
    entry = champion.find_champion(pipeline.store)
    assert entry is None or entry.version in releases.list_versions(pipeline.store)


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", ["publish", "promote"])
def test_publish_and_promote_can_be_killed_at_every_write(
    finished_pipeline: Pipeline, tmp_path: Path, step: str
) -> None:
    expected = require_champion(finished_pipeline.store).version
    delete_from(finished_pipeline, step)
    before = tmp_path / "before"
    shutil.copytree(finished_pipeline.store.root, before)
    moment = 1
    while kill_step(finished_pipeline, step, moment):
        check_store(finished_pipeline)
        for name in ORDER[ORDER.index(step) :]:
            if name != "verify_release":
                run_step(name, RUN)
            elif not finished_pipeline.store.stat(f"runs/{RUN.id}/{name}.json"):
                shutil.copy(tmp_path / "verified.json", finished_pipeline.store.root / "runs" / RUN.id / f"{name}.json")
        assert [entry.version for entry in champion.list_entries(finished_pipeline.store)] == [expected]
        assert releases.list_versions(finished_pipeline.store) == [expected]
        shutil.rmtree(finished_pipeline.store.root)
        shutil.copytree(before, finished_pipeline.store.root)
        moment += 1
    assert moment > 4  # the step writes at least its record, its report and one more object


@pytest.fixture(autouse=True)
def save_verification(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    """Save the record of `verify_release`, so that the step need not run after each kill."""
    shutil.copy(finished_pipeline.store.root / "runs" / RUN.id / "verify_release.json", tmp_path / "verified.json")


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [name for name in ORDER if name not in {"publish", "promote"}])
def test_every_other_step_can_be_killed_in_the_middle(finished_pipeline: Pipeline, step: str) -> None:
    expected = require_champion(finished_pipeline.store).version
    model = releases.read_manifest(finished_pipeline.store, expected).model_sha256
    trained = read_result(finished_pipeline.store, RUN, "train")
    delete_from(finished_pipeline, step)
    assert kill_step(finished_pipeline, step, 2)
    check_store(finished_pipeline)
    assert champion.find_champion(finished_pipeline.store) is None
    result = run_step(step, RUN)
    if step == "train":
        assert [fit.model for fit in result] == [fit.model for fit in trained]
    if step == "fine_tune":
        assert result.candidate.model.sha256 == model
