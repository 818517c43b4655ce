"""Several base models: each has its own record, and the one with the lowest validation loss is chosen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks import steps
from fmnist_tasks.model import h5
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import PROJECT
from fmnist_tasks.steps import read_result, run_step
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

RUN_OF_THREE = replace(RUN, id="run-3", parameters=replace(RUN.parameters, seed=5, candidates=3))


@pytest.mark.exhaustive
def test_the_best_of_three_on_validation_becomes_the_champion(pipeline: Pipeline) -> None:
    pipeline.run_until("promote", RUN_OF_THREE)
    records = read_records(pipeline.store, RUN_OF_THREE.id)
    assert {"train-5", "train-6", "train-7"} <= set(records)
    trained, base = (
        read_result(pipeline.store, RUN_OF_THREE, "train"),
        read_result(pipeline.store, RUN_OF_THREE, "choose_base"),
    )
    assert len({candidate.model.sha256 for candidate in trained}) == 3
    best = min(trained, key=lambda candidate: candidate.validation_loss)
    assert (base.seed, base.model) == (best.seed, best.model)
    assert [row.chosen for row in base.candidates] == [candidate is best for candidate in trained]
    assert "<b>chosen</b>" in pipeline.store.get(f"runs/{RUN_OF_THREE.id}/report.html").decode()
    manifest = open_release(pipeline.store, require_champion(pipeline.store).version).manifest
    assert manifest.parameters["candidates"] == 3
    assert list(pipeline.store.list("checkpoints/")) == []


@pytest.mark.integration
def test_the_lower_loss_decides_even_with_lower_accuracy(finished_pipeline: Pipeline) -> None:
    (first,) = read_result(finished_pipeline.store, RUN, "train")
    better = {"seed": 1, "validation_loss": first.validation_loss / 2, "validation_accuracy": 0.5}
    second = first.model_copy(update=better)
    assert steps.choose_base(finished_pipeline.store, RUN, [first, second]).seed == 1
    assert run_step("choose_base", RUN).seed == 0


@pytest.mark.integration
@pytest.mark.parametrize(("loss", "chosen"), [(0.0, "base"), pytest.param(10.0, "tuned", marks=pytest.mark.exhaustive)])
def test_of_base_and_tuned_model_the_one_with_the_lower_loss_is_the_candidate(
    finished_pipeline: Pipeline, loss: float, chosen: str
) -> None:
    finished_pipeline.change_result("choose_base", validation_loss=loss, validation_accuracy=loss / 10)
    base, tuned = finished_pipeline.read_result("choose_base"), run_step("fine_tune", RUN)
    better = {"base": base, "tuned": tuned}[chosen]
    assert tuned.chosen == chosen
    assert tuned.summary.endswith(f"the {chosen} model is the candidate")
    assert tuned.candidate.validation_accuracy == better.validation_accuracy
    assert tuned.candidate.temperature == better.temperature
    candidate = h5.load_model(get_verified(finished_pipeline.store, tuned.candidate.model), "candidate model")
    classifier = h5.load_model(get_verified(finished_pipeline.store, better.model), f"{chosen} model")
    images, _ = synthetic.make_images(200, 3)
    scaled = h5.classify(classifier, images) ** (1 / better.temperature)
    np.testing.assert_allclose(h5.classify(candidate, images), scaled / scaled.sum(axis=1, keepdims=True), atol=1e-5)


def test_trainings_on_one_machine_run_one_after_the_other(tmp_path: Path) -> None:
    lock, log = tmp_path / "lock", tmp_path / "log"
    command = [sys.executable, "-m", "tests.support.lock_user", lock, log]
    processes = [subprocess.Popen([*command, str(number)], cwd=PROJECT) for number in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    lines = log.read_text().splitlines()
    assert len(lines) == 8
    for start, end in zip(lines[::2], lines[1::2], strict=True):
        assert start.replace("in", "out") == end
