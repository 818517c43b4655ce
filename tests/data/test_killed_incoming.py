"""If validation is killed (SIGKILL) at any change of a file, a retry or the next run completes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmnist_tasks.data.accepted_batches import list_accepted
from fmnist_tasks.registry.folder import to_original_key
from fmnist_tasks.steps import Run, run_step
from tests.support import synthetic
from tests.support.killed_step import run_until_killed_at_a_file
from tests.support.pipeline import Pipeline
from tests.support.processes import start_process, wait_for_exit
from tests.support.synthetic import RUN, encode_npz

pytestmark = pytest.mark.exhaustive

FOLDERS = ("incoming", "quarantine", "batches")
BAD_FILES = {"notes.txt": b"hello", "bad-images-idx3-ubyte": b"x", "bad-labels-idx1-ubyte": b"y"}


@pytest.mark.parametrize("completed_by", ["a retry", "the next run"])
def test_validation_killed_at_any_change_of_a_file_is_completed(
    pipeline: Pipeline, tmp_path: Path, completed_by: str
) -> None:
    images, labels = synthetic.make_images(200, 9)
    pipeline.store.put("incoming/good.npz", encode_npz(images=images, labels=labels))
    for name, data in BAD_FILES.items():
        pipeline.store.put(f"incoming/{name}", data)
    (pipeline.store.root / "incoming" / "link.npz").symlink_to(pipeline.data)
    run_step("ingest", RUN)
    before, output = tmp_path / "before", tmp_path / "output.txt"
    shutil.move(pipeline.store.root, before)
    moment = 0
    while True:
        moment += 1
        shutil.rmtree(pipeline.store.root, ignore_errors=True)
        # With the modification times, which identify a listed file; the times of change differ.
        shutil.copytree(before, pipeline.store.root, symlinks=True)
        run_step("ingest", RUN)
        killed = not wait_for_exit(
            start_process(output, run_until_killed_at_a_file, "validate_data", moment, FOLDERS), output
        )
        if killed and completed_by == "a retry":
            run_step("validate_data", RUN)
        elif killed:
            run = Run("run-2", RUN.created, RUN.parameters)
            run_step("ingest", run)
            run_step("validate_data", run)
        check_all_files(pipeline, moment, may_wait=completed_by == "the next run")
        if not killed:
            break
    assert moment > 20


def check_all_files(pipeline: Pipeline, moment: int, *, may_wait: bool) -> None:
    """Check that the good batch is in the dataset, each other file is in quarantine with a reason, and none is left.

    If the first file of a pair had been moved, the next run finds half a pair, which waits.
    """
    assert [batch.name for batch in list_accepted(pipeline.store)] == ["good.npz"], moment
    quarantined = {
        path.name: path.read_bytes() for path in (pipeline.store.root / "quarantine").rglob("*") if path.is_file()
    }
    files = [*(pipeline.store.root / "incoming").iterdir()]
    remaining = {
        to_original_key(f"incoming/{path.name}").removeprefix("incoming/"): path.read_bytes() for path in files
    }
    assert remaining.keys() <= ({"bad-labels-idx1-ubyte"} if may_wait else set()), moment
    assert {name: (quarantined | remaining).get(name) for name in BAD_FILES} == BAD_FILES, moment
    assert {"notes.txt.reason.txt", "bad.reason.txt", "link.npz.reason.txt"} <= quarantined.keys(), moment
