from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.data.checks import Sample, check_samples
from tests.support import synthetic

IMAGES, LABELS = synthetic.make_images(400, 3)
TRAINING, TEST = (
    Sample("training", *synthetic.make_images(1600, 1), 1600),
    Sample("test", *synthetic.make_images(600, 2), 600),
)


def failed(images: np.ndarray, labels: np.ndarray = LABELS, count: int | None = None) -> dict[str, str]:
    """Names and reasons of the checks that a batch, or with a count a training part, does not pass."""
    sample = Sample("it", images, labels, count)
    parts = (TRAINING, TEST, [sample]) if count is None else (sample, TEST, [])
    found, _ = check_samples(*parts, synthetic.CLASSES)
    return {check.name: check.reason for check in found["it"].checks if not check.passed}


def with_pixel(value: float, dtype: type) -> np.ndarray:
    images = IMAGES.astype(dtype)
    images[7, 3, 3] = value
    return images


def test_good_images_pass_every_check() -> None:
    assert failed(IMAGES) == {}
    assert failed(IMAGES, LABELS.astype(np.int64)) == {}
    assert failed(IMAGES, count=400) == {}


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (IMAGES[:, :27], {"height"}),
        (np.pad(IMAGES, ((0, 0), (0, 0), (0, 1))), {"width"}),
        (IMAGES[..., None], {"height", "width"}),
        (IMAGES.astype(np.float32), {"dtype"}),
        (IMAGES.astype(np.float64) / 255, {"dtype", "pixel range", "blank images"}),
        (IMAGES // 255, {"pixel range", "blank images", "duplicates", "extreme images", "kind of images"}),
        (with_pixel(256, np.int32), {"dtype", "brightest pixel", "pixel range"}),
        (with_pixel(-1, np.int16), {"dtype", "darkest pixel"}),
        (with_pixel(np.nan, np.float64), {"dtype", "missing pixels"}),
        (IMAGES.astype(str), {"dtype", "missing pixels", "pixel range"}),
        (
            np.zeros_like(IMAGES),
            {"pixel range", "blank images", "duplicates", "extreme images", "kind of images", "inverted brightness"},
        ),
    ],
)
def test_images_of_wrong_shape_dtype_or_range(images: np.ndarray, names: set[str]) -> None:
    assert set(failed(images)) == names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.where(LABELS == 3, 10, LABELS), {"labels"}),
        (np.where(LABELS == 3, -1, LABELS.astype(np.int8)), {"labels"}),
        (LABELS.astype(np.float64), {"label dtype"}),
        (LABELS.astype(str), {"label dtype", "labels"}),
    ],
)
def test_labels_outside_the_declared_classes(labels: np.ndarray, names: set[str]) -> None:
    assert set(failed(IMAGES, labels)) == names


def test_the_base_dataset_must_have_its_count_and_all_classes_in_balance() -> None:
    assert set(failed(IMAGES, count=401)) == {"count"}
    assert set(failed(IMAGES, np.where(LABELS == 3, 4, LABELS), count=400)) == {
        "class balance",
        "missing class",
        "swapped labels",
    }
    keep = LABELS != 3
    assert set(failed(IMAGES[keep], LABELS[keep])) == set()  # a batch may lack a class


def test_drift_is_small_for_images_that_are_alike_and_near_1_for_others() -> None:
    noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    batches = [Sample("alike", IMAGES, LABELS, None), Sample("noise", noise, LABELS, None)]
    found, _ = check_samples(TRAINING, TEST, batches, synthetic.CLASSES)
    assert found["alike"].drift < 0.2
    assert found["noise"].drift > 0.9


def test_an_empty_batch_is_no_batch() -> None:
    assert "count" in failed(IMAGES[:0], LABELS[:0])


def test_a_reason_tells_how_many_rows_are_wrong_and_shows_one() -> None:
    wrong = np.where(np.arange(400) == 5, 77, LABELS)
    asks = "every label is one of the declared classes"
    assert failed(IMAGES, wrong)["labels"] == f"{asks}: not so for 1 of 400 rows, for instance 77"


def test_the_data_docs_name_every_sample() -> None:
    _, pages = check_samples(TRAINING, TEST, [Sample("week 12.npz", IMAGES, LABELS, None)], synthetic.CLASSES)
    index = pages["index.html"].decode()
    assert "training images" in index
    assert any("week 12.npz images" in path for path in pages)
