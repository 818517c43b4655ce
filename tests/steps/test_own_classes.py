from __future__ import annotations

import pytest

from fmnist_tasks import service
from tests.support import synthetic
from tests.support.pipeline import Line


@pytest.mark.exhaustive
def test_a_dataset_of_other_classes_goes_all_the_way(line: Line) -> None:
    arrays = {}
    for split, count, seed in (("train", 3000, 1), ("test", 1000, 2)):
        images, labels = synthetic.images(count, seed)
        arrays |= {f"{split}_images": images[labels < 3], f"{split}_labels": labels[labels < 3]}
    synthetic.declare(line.data, classes=3, **arrays)
    line.upto("promote")
    release = service.open_release(line.store, service.in_service(line.store).version)
    assert release.manifest["classes"] == ["pattern 0", "pattern 1", "pattern 2"]
    assert len(release.manifest["figures"]["test"]["confusion"]) == 3
    answers = service.answers(release, arrays["test_images"][:100])
    right = [row["class"] == f"pattern {label}" for row, label in zip(answers, arrays["test_labels"], strict=False)]
    assert sum(right) >= 95
