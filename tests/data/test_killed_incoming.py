"""Validation that is killed (SIGKILL) at any change of a file: the next try, or the next run, completes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fmnist_tasks import steps
from fmnist_tasks.data.batches import list_accepted
from fmnist_tasks.registry.local import name_before
from fmnist_tasks.steps import Run
from tests.support import synthetic
from tests.support.killed_step import run_until_killed_at_a_file
from tests.support.pipeline import Pipeline
from tests.support.processes import start_process, wait_for_exit
from tests.support.synthetic import RUN, encode_npz

pytestmark = pytest.mark.exhaustive

FOLDERS = ("incoming", "quarantine", "batches")
BAD = {"notes.txt": b"hello", "bad-images-idx3-ubyte": b"x", "bad-labels-idx1-ubyte": b"y"}


@pytest.mark.parametrize("goes_on", ["the next try", "the next run"])
def test_killed_at_every_change_of_a_file(pipeline: Pipeline, tmp_path: Path, goes_on: str) -> None:
    images, labels = synthetic.make_images(200, 9)
    pipeline.store.put("incoming/good.npz", encode_npz(images=images, labels=labels))
    for name, data in BAD.items():
        pipeline.store.put(f"incoming/{name}", data)
    (pipeline.store.root / "incoming" / "link.npz").symlink_to(pipeline.data)
    steps.ingest(RUN)
    before, said = tmp_path / "before", tmp_path / "said.txt"
    shutil.move(pipeline.store.root, before)
    moment = 0
    while True:
        moment += 1
        shutil.rmtree(pipeline.store.root, ignore_errors=True)
        # With the times of the files, which are part of what was seen; that of their change is another.
        shutil.copytree(before, pipeline.store.root, symlinks=True)
        ingested = steps.ingest(RUN)
        killed = not wait_for_exit(
            start_process(said, run_until_killed_at_a_file, "validate_data", moment, FOLDERS), said
        )
        if killed and goes_on == "the next try":
            steps.validate_data(RUN, ingested)
        elif killed:
            run = Run("run-2", RUN.created, RUN.parameters)
            steps.validate_data(run, steps.ingest(run))
        see_all(pipeline, moment, may_wait=goes_on == "the next run")
        if not killed:
            break
    assert moment > 20


def see_all(pipeline: Pipeline, moment: int, *, may_wait: bool) -> None:
    """The good batch is in the dataset, each other file in quarantine with a reason, and nothing is left.

    Of a pair whose first file had been moved, the next run finds a half, which waits.
    """
    assert [batch.name for batch in list_accepted(pipeline.store)] == ["good.npz"], moment
    kept = {path.name: path.read_bytes() for path in (pipeline.store.root / "quarantine").rglob("*") if path.is_file()}
    files = [*(pipeline.store.root / "incoming").iterdir()]
    left = {name_before(f"incoming/{path.name}").removeprefix("incoming/"): path.read_bytes() for path in files}
    assert left.keys() <= ({"bad-labels-idx1-ubyte"} if may_wait else set()), moment
    assert {name: (kept | left).get(name) for name in BAD} == BAD, moment
    assert {"notes.txt.reason.txt", "bad.reason.txt", "link.npz.reason.txt"} <= kept.keys(), moment
