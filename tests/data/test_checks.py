"""The data checks on synthetic images: each fault fails its checks, and good images pass."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.data.checks import Sample, check_samples
from fmnist_tasks.schemas.policy import DataPolicy
from tests.support import synthetic

IMAGES, LABELS = synthetic.make_images(400, 3)
TRAINING, TEST = (
    Sample("training", *synthetic.make_images(1600, 1), 1600),
    Sample("test", *synthetic.make_images(600, 2), 600),
)


def find_failures(images: np.ndarray, labels: np.ndarray = LABELS, count: int | None = None) -> dict[str, str]:
    """Return names and messages of the failed checks of a batch or, with a count, of a training split."""
    sample = Sample("sample", images, labels, count)
    samples = (TRAINING, TEST, [sample]) if count is None else (sample, TEST, [])
    findings, _ = check_samples(*samples, synthetic.PROPERTIES, DataPolicy())
    return {check.name: check.message for check in findings["sample"].checks if not check.has_passed}


def set_pixel(value: float, dtype: type) -> np.ndarray:
    images = IMAGES.astype(dtype)
    images[7, 3, 3] = value
    return images


def test_good_images_pass_every_check() -> None:
    assert find_failures(IMAGES) == {}
    assert find_failures(IMAGES, LABELS.astype(np.int64)) == {}
    assert find_failures(IMAGES, count=400) == {}


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (IMAGES[:, :27], {"height"}),
        (np.pad(IMAGES, ((0, 0), (0, 0), (0, 1))), {"width"}),
        (IMAGES[..., None], {"channels"}),
        (np.repeat(IMAGES[..., None], 3, axis=3), {"channels"}),
        (IMAGES.astype(np.float32), {"dtype"}),
        (IMAGES.astype(np.float64) / 255, {"dtype", "pixel range", "blank images"}),
        (IMAGES // 255, {"pixel range", "blank images", "duplicates", "outliers", "image distribution"}),
        (set_pixel(256, np.int32), {"dtype", "maximum pixel", "pixel range"}),
        (set_pixel(-1, np.int16), {"dtype", "minimum pixel"}),
        (set_pixel(np.nan, np.float64), {"dtype", "missing values"}),
        (IMAGES.astype(str), {"dtype", "missing values", "pixel range"}),
        (
            np.zeros_like(IMAGES),
            {"pixel range", "blank images", "duplicates", "outliers", "image distribution", "inverted brightness"},
        ),
    ],
)
def test_images_with_a_wrong_shape_dtype_or_range_fail(images: np.ndarray, names: set[str]) -> None:
    assert set(find_failures(images)) == names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.where(LABELS == 3, 10, LABELS), {"labels"}),
        (np.where(LABELS == 3, -1, LABELS.astype(np.int8)), {"labels"}),
        (LABELS.astype(np.float64), {"label dtype"}),
        (LABELS.astype(str), {"label dtype", "labels"}),
    ],
)
def test_labels_outside_the_declared_classes_fail(labels: np.ndarray, names: set[str]) -> None:
    assert set(find_failures(IMAGES, labels)) == names


def test_the_base_dataset_must_have_the_declared_count_and_balanced_classes() -> None:
    assert set(find_failures(IMAGES, count=401)) == {"image count"}
    assert set(find_failures(IMAGES, np.where(LABELS == 3, 4, LABELS), count=400)) == {
        "class balance",
        "missing class",
        "label errors",
    }
    is_other = LABELS != 3
    assert set(find_failures(IMAGES[is_other], LABELS[is_other])) == set()  # a batch may lack a class


def test_drift_is_small_for_similar_images_and_near_1_for_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    batches = [Sample("similar", IMAGES, LABELS, None), Sample("noise", noise, LABELS, None)]
    findings, _ = check_samples(TRAINING, TEST, batches, synthetic.PROPERTIES, DataPolicy())
    similar, different = findings["similar"].drift, findings["noise"].drift
    assert similar is not None
    assert different is not None
    assert similar < 0.2
    assert different > 0.9


def test_a_reference_with_too_few_images_is_reported() -> None:
    few = Sample("test", *synthetic.make_images(100, 2), 100)
    findings, _ = check_samples(TRAINING, few, [], synthetic.PROPERTIES, DataPolicy())
    (check,) = (check for check in findings["training"].checks if not check.has_passed)
    requirement = "the test split has at least 20 valid, non-blank images of each class"
    assert (check.name, check.threshold) == ("reference", requirement)
    assert check.message == f"{requirement}: it does not, so training cannot be compared with it"


def test_an_empty_batch_fails() -> None:
    assert "image count" in find_failures(IMAGES[:0], LABELS[:0])


def test_a_message_has_the_number_of_wrong_rows_and_an_example() -> None:
    wrong = np.where(np.arange(400) == 5, 77, LABELS)
    requirement = "every label is one of the declared classes"
    assert find_failures(IMAGES, wrong)["labels"] == f"{requirement}: failed for 1 of 400 rows, for example 77"


def test_the_data_docs_name_every_sample() -> None:
    _, pages = check_samples(
        TRAINING, TEST, [Sample("week 12.npz", IMAGES, LABELS, None)], synthetic.PROPERTIES, DataPolicy()
    )
    index = pages["index.html"].decode()
    assert "training images" in index
    assert any("week 12.npz images" in path for path in pages)
