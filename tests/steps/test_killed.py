"""A step that is killed at any of its writes leaves the old champion or the new one whole, and can be run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.steps import STEPS, run_again
from fmnist_tasks.steps.step import result_of
from tests.support.killed_step import run_mortal
from tests.support.pipeline import Line
from tests.support.processes import apart, survived
from tests.support.synthetic import RUN

ORDER = list(STEPS)


def killed(line: Line, step: str, moment: int) -> bool:
    """Run the step in a process of its own; True if it was killed at that moment, False if it ended before."""
    said = line.home / "said.txt"
    return not survived(apart(said, run_mortal, step, moment), said)


def rewound(finished: Line, step: str) -> None:
    """Take back what the run did from this step on: as if it had just come to it."""
    for later in ORDER[ORDER.index(step) :]:
        finished.store.delete(f"runs/{RUN.id}/{later}.json")
        finished.store.delete(f"runs/{RUN.id}/{later}-{RUN.parameters.seed}.json")
    if ORDER.index(step) <= ORDER.index("publish"):
        shutil.rmtree(finished.store.root / "releases")
    shutil.rmtree(finished.store.root / "champion")


def whole(line: Line) -> None:
    """Whatever a reader finds is complete: every release intact, and the champion one of them."""
    for version in releases.versions(line.store):
        releases.read_files(line.store, releases.read_manifest(line.store, version))
    entry = champion.champion(line.store)
    assert entry is None or entry.version in releases.versions(line.store)


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", ["publish", "promote"])
def test_killed_at_every_write_of_publish_and_promote(finished: Line, tmp_path: Path, step: str) -> None:
    expected = service.in_service(finished.store).version
    rewound(finished, step)
    before = tmp_path / "before"
    shutil.copytree(finished.store.root, before)
    moment = 1
    while killed(finished, step, moment):
        whole(finished)
        for name in ORDER[ORDER.index(step) :]:
            if name != "verify_release":
                run_again(name, RUN)
            elif not finished.store.stat(f"runs/{RUN.id}/{name}.json"):
                shutil.copy(tmp_path / "verified.json", finished.store.root / "runs" / RUN.id / f"{name}.json")
        assert [entry.version for entry in champion.history(finished.store)] == [expected]
        assert releases.versions(finished.store) == [expected]
        shutil.rmtree(finished.store.root)
        shutil.copytree(before, finished.store.root)
        moment += 1
    assert moment > 4  # the step has written at least its record, its report and one thing more


@pytest.fixture(autouse=True)
def verified(finished: Line, tmp_path: Path) -> None:
    shutil.copy(finished.store.root / "runs" / RUN.id / "verify_release.json", tmp_path / "verified.json")


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [name for name in ORDER if name not in {"publish", "promote"}])
def test_killed_in_the_middle_of_every_other_step(finished: Line, step: str) -> None:
    expected = service.in_service(finished.store).version
    model = releases.read_manifest(finished.store, expected)["model_sha256"]
    trained = result_of(finished.store, RUN, "train")
    rewound(finished, step)
    assert killed(finished, step, 2)
    whole(finished)
    assert champion.champion(finished.store) is None
    result = run_again(step, RUN)
    if step == "train":
        assert [candidate["model"] for candidate in result] == [candidate["model"] for candidate in trained]
    if step == "fine_tune":
        assert result["candidate"]["model"]["sha256"] == model
