"""Several candidates for the base model: each keeps its own record, and the best on validation goes on."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Line
from made import RUN

from fmnist_tasks import service, steps
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.steps import run_again
from fmnist_tasks.steps.step import result_of
from fmnist_tasks.turns import one_at_a_time

THREE = replace(RUN, id="run-3", parameters=replace(RUN.parameters, seed=5, candidates=3))


@pytest.mark.slow
def test_the_best_of_three_on_validation_becomes_the_champion(line: Line) -> None:
    line.upto("promote", THREE)
    records = read_records(line.store, THREE.id)
    assert {"train-5", "train-6", "train-7"} <= set(records)
    trained, base = result_of(line.store, THREE, "train"), result_of(line.store, THREE, "choose_base")
    assert len({candidate["model"]["sha256"] for candidate in trained}) == 3
    best = max(trained, key=lambda candidate: (candidate["validation_accuracy"], -candidate["validation_loss"]))
    assert (base["seed"], base["model"]) == (best["seed"], best["model"])
    assert [row["chosen"] for row in base["candidates"]] == [candidate is best for candidate in trained]
    assert "goes on" in line.store.get(f"runs/{THREE.id}/report.html").decode()
    manifest = service.open_release(line.store, service.in_service(line.store).version).manifest
    assert manifest["parameters"]["candidates"] == 3
    assert list(line.store.list("checkpoints/")) == []


def test_equal_accuracy_is_decided_by_loss(finished: Line) -> None:
    (one,) = result_of(finished.store, RUN, "train")
    other = {**one, "seed": 1, "validation_loss": one["validation_loss"] / 2}
    assert steps.choose_base(RUN, [one, other])["seed"] == 1
    assert run_again("choose_base", RUN)["seed"] == 0


def inside(lock: Path, diary: Path, number: int) -> None:
    with one_at_a_time(lock), diary.open("a") as file:
        file.write(f"{number} in\n")
        file.flush()
        time.sleep(0.05)  # long enough for another to come in, if it could
        file.write(f"{number} out\n")


def test_trainings_on_one_machine_take_turns(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=inside, args=(tmp_path / "lock", tmp_path / "diary", number)
        )
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = (tmp_path / "diary").read_text().splitlines()
    assert len(lines) == 8
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.replace("in", "out") == left
