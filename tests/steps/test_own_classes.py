"""A run on a dataset with other classes than Fashion-MNIST."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.serving.release import classify_images, open_release, require_champion
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
