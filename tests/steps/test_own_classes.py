from __future__ import annotations

import pytest

from fmnist_tasks import service
from tests.support import synthetic
from tests.support.pipeline import Pipeline


@pytest.mark.exhaustive
def test_a_dataset_of_other_classes_goes_all_the_way(pipeline: Pipeline) -> None:
    arrays = {}
    for split, count, seed in (("train", 3000, 1), ("test", 1000, 2)):
        images, labels = synthetic.make_images(count, seed)
        arrays |= {f"{split}_images": images[labels < 3], f"{split}_labels": labels[labels < 3]}
    synthetic.write_dataset(pipeline.data, classes=3, **arrays)
    pipeline.run_until("promote")
    release = service.open_release(pipeline.store, service.in_service(pipeline.store).version)
    assert release.manifest["classes"] == ["pattern 0", "pattern 1", "pattern 2"]
    assert len(release.manifest["figures"]["test"]["confusion"]) == 3
    answers = service.answers(release, arrays["test_images"][:100])
    right = [row["class"] == f"pattern {label}" for row, label in zip(answers, arrays["test_labels"], strict=False)]
    assert sum(right) >= 95
