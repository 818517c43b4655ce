"""Two real datasets, from the user's files to predictions, with the commands that users type."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.registry.releases import read_manifest
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import read_run
from fmnist_tasks.schemas.releases import Manifest
from fmnist_tasks.serving.release import require_champion
from tests.support.own_datasets import PHOTOGRAPHS, write_digits, write_photo_patches
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.exhaustive


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_pipeline(name: str, seed: int) -> float:
    """Run every step with the profile `quick`; return the test accuracy of the candidate."""
    run_id = f"run-{seed}"
    run_command("--dataset", name, "ingest", "--profile", "quick", "--seed", str(seed), "--run", run_id)
    for step in ("validate", "train", "evaluate", "fine-tune"):
        run_command("--dataset", name, step)
    # With a champion in place, a candidate that is not better may be rejected; both are valid ends.
    ended = CliRunner().invoke(app, ["--dataset", name, "evaluate"])
    if ended.exit_code == 0:
        run_command("--dataset", name, "publish")
    return read_run(open_default_store(name), run_id).results["evaluate_tuned"].test.accuracy


def read_champion(name: str) -> Manifest:
    store = open_default_store(name)
    return read_manifest(store, require_champion(store).version)


def check_page_and_predictions(name: str, title: str, ood_label: str, image: Path, noise: Path, label: str) -> None:
    page = TestClient(create_app(Access(lambda: None, lambda: "ann", lambda _: Schedule())))
    overview = page.get(f"/datasets/{name}/")
    assert overview.status_code == 200
    champion = read_champion(name)
    assert champion.version in overview.text
    release = page.get(f"/datasets/{name}/releases/{champion.version}").text
    assert all(f">{row}<" in release for row in champion.classes)
    assert "clothing" not in (release + overview.text + page.get(f"/datasets/{name}/try").text).lower()
    assert title in page.get(f"/datasets/{name}/try").text
    assert "none yet" in page.get("/").text
    predictions = json.loads(run_command("--dataset", name, "predict", str(image), str(noise), "--json"))
    assert [row["answer"] for row in predictions] == [label, ood_label]


@pytest.fixture
def make_dataset(pipeline: Pipeline) -> Callable[..., None]:
    def make(path: Path, name: str, *options: str) -> None:
        output = run_command("dataset", "new", name, str(path), *options)
        assert f"make run DATASET={name}" in output

    return make


def test_digits(make_dataset: Callable[..., None], tmp_path: Path) -> None:
    source = write_digits(tmp_path)
    make_dataset(source, "digits", "--title", "Handwritten digits", "--ood-label", "not a digit")
    accuracies = [run_pipeline("digits", 0)]
    first = read_champion("digits")
    accuracies += [run_pipeline("digits", seed) for seed in (1, 2)]
    print(f"test accuracies of digits: {', '.join(f'{value:.2%}' for value in accuracies)}")
    assert statistics.mean(accuracies) >= 0.985
    assert first.dataset.image_format.shape == (8, 8)
    assert first.verdict.decision == "promote"

    with np.load(source) as arrays:
        Image.fromarray(arrays["x_test"][0]).save(tmp_path / "digit.png")
        label = str(arrays["y_test"][0])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "noise.png")
    check_page_and_predictions(
        "digits", "Handwritten digits", "not a digit", tmp_path / "digit.png", tmp_path / "noise.png", label
    )


def test_photo_patches(make_dataset: Callable[..., None], tmp_path: Path) -> None:
    source = write_photo_patches(tmp_path)
    make_dataset(source, "patches", "--title", "Patches of photographs", "--flip")
    accuracy = run_pipeline("patches", 0)
    print(f"test accuracy of patches: {accuracy:.2%}")
    champion = read_champion("patches")
    assert champion.dataset.image_format.shape == (32, 32, 3)
    assert champion.classes == sorted(PHOTOGRAPHS)
    assert accuracy > 0.8
    run_pipeline("patches", 1)

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    check_page_and_predictions(
        "patches",
        "Patches of photographs",
        "out of distribution",
        source / "test" / "retina" / "0.png",
        tmp_path / "noise.png",
        "retina",
    )
