"""A run on a dataset with other classes than Fashion-MNIST."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.serving.release import classify_images, open_release, require_champion
from fmnist_tasks.steps import run_step
from tests.support import synthetic
from tests.support.pipeline import Pipeline


@pytest.mark.exhaustive
def test_a_model_of_other_classes_is_promoted(pipeline: Pipeline) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, count, seed in (("train", 3000, 1), ("test", 1000, 2)):
        images, labels = synthetic.make_images(count, seed)
        arrays |= {f"{split}_images": images[labels < 3], f"{split}_labels": labels[labels < 3]}
    synthetic.write_dataset(pipeline.data, classes=3, **arrays)
    pipeline.run_until("promote")
    release = open_release(pipeline.store, require_champion(pipeline.store).version)
    assert release.manifest.classes == ["pattern 0", "pattern 1", "pattern 2"]
    assert len(release.manifest.metrics.test.confusion) == 3
    rows = classify_images(release, arrays["test_images"][:100])
    correct = [row["class"] == f"pattern {label}" for row, label in zip(rows, arrays["test_labels"], strict=False)]
    assert sum(correct) >= 95


@pytest.mark.integration
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('name = "synthetic"', 'name = "birds"', "name synthetic, not birds"),
        ("'pattern 9'", "'robin'", r"classes \['pattern 0', .*'pattern 9'\], not \['pattern 0', .*'robin'\]"),
    ],
)
def test_a_champion_of_another_dataset_is_refused_before_training(
    finished_pipeline: Pipeline, old: str, new: str, fault: str
) -> None:
    declaration = finished_pipeline.data / "dataset.toml"
    declaration.write_text(declaration.read_text().replace(old, new))
    run = replace(synthetic.RUN, id="run-2")
    for name in ("ingest", "validate_data"):
        run_step(name, run)
    with pytest.raises(SettingsError, match=rf"^the champion \S+ belongs to another dataset: {fault}\. Nothing is"):
        run_step("detect_change", run)
