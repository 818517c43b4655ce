"""Several candidates for the base model: each keeps its own record, and the best on validation goes on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks import service, steps
from fmnist_tasks.model import h5
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.settings import PROJECT
from fmnist_tasks.steps import run_again
from fmnist_tasks.steps.step import result_of
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

THREE = replace(RUN, id="run-3", parameters=replace(RUN.parameters, seed=5, candidates=3))


@pytest.mark.exhaustive
def test_the_best_of_three_on_validation_becomes_the_champion(pipeline: Pipeline) -> None:
    pipeline.run_until("promote", THREE)
    records = read_records(pipeline.store, THREE.id)
    assert {"train-5", "train-6", "train-7"} <= set(records)
    trained, base = result_of(pipeline.store, THREE, "train"), result_of(pipeline.store, THREE, "choose_base")
    assert len({candidate["model"]["sha256"] for candidate in trained}) == 3
    best = min(trained, key=lambda candidate: candidate["validation_loss"])
    assert (base["seed"], base["model"]) == (best["seed"], best["model"])
    assert [row["chosen"] for row in base["candidates"]] == [candidate is best for candidate in trained]
    assert "goes on" in pipeline.store.get(f"runs/{THREE.id}/report.html").decode()
    manifest = service.open_release(pipeline.store, service.in_service(pipeline.store).version).manifest
    assert manifest["parameters"]["candidates"] == 3
    assert list(pipeline.store.list("checkpoints/")) == []


@pytest.mark.integration
def test_less_loss_decides_even_against_accuracy(finished_pipeline: Pipeline) -> None:
    (one,) = result_of(finished_pipeline.store, RUN, "train")
    other = {**one, "seed": 1, "validation_loss": one["validation_loss"] / 2, "validation_accuracy": 0.5}
    assert steps.choose_base(RUN, [one, other])["seed"] == 1
    assert run_again("choose_base", RUN)["seed"] == 0


@pytest.mark.integration
@pytest.mark.parametrize(("loss", "chosen"), [(0.0, "base"), pytest.param(10.0, "tuned", marks=pytest.mark.exhaustive)])
def test_the_candidate_is_the_one_of_base_and_tuned_model_with_less_loss(
    finished_pipeline: Pipeline, loss: float, chosen: str
) -> None:
    validated, base, accepted = (result_of(finished_pipeline.store, RUN, name) for name in steps.INPUTS["fine_tune"])
    base |= {"validation_loss": loss, "validation_accuracy": loss / 10}
    tuned = steps.fine_tune(RUN, validated, base, accepted)
    better = {"base": base, "tuned": tuned}[chosen]
    assert tuned["chosen"] == chosen
    assert tuned["summary"].endswith(f"the {chosen} model goes on")
    assert {name: tuned["candidate"][name] for name in ("validation_accuracy", "temperature")} == {
        name: better[name] for name in ("validation_accuracy", "temperature")
    }
    candidate = h5.load(get_verified(finished_pipeline.store, tuned["candidate"]["model"]), "candidate model")
    classifier = h5.load(get_verified(finished_pipeline.store, better["model"]), f"{chosen} model")
    images, _ = synthetic.make_images(200, 3)
    scaled = h5.classify(classifier, images) ** (1 / better["temperature"])
    np.testing.assert_allclose(h5.classify(candidate, images), scaled / scaled.sum(axis=1, keepdims=True), atol=1e-5)


def test_trainings_on_one_machine_take_turns(tmp_path: Path) -> None:
    lock, log = tmp_path / "lock", tmp_path / "log"
    command = [sys.executable, "-m", "tests.support.lock_user", lock, log]
    processes = [subprocess.Popen([*command, str(number)], cwd=PROJECT) for number in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    lines = log.read_text().splitlines()
    assert len(lines) == 8
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.replace("in", "out") == left
