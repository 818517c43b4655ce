"""Sheets of images: each lies where its row and its place say."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fmnist_tasks.evaluation import figures


def pixels(picture: bytes) -> np.ndarray:
    """Red, green and blue of a PNG file, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_class_has_a_row_of_its_images_and_one_without_images_an_empty_row() -> None:
    images, labels = np.zeros((9, 28, 28), np.uint8), np.full(9, 1, np.uint8)
    found = pixels(figures.class_samples(images, labels, ["coat", "dress", "bag"])).max(axis=2) < 10
    right = found[:, found.shape[1] // 2 :]  # beside the names
    rows = np.flatnonzero(right.any(axis=1)) / len(found)
    assert 0.3 < rows.min() < 0.4
    assert 0.6 < rows.max() < 0.7
    assert right.any(axis=0).mean() > 0.6  # most of that half is theirs


def test_a_prediction_has_its_image_in_its_place_and_its_text_above() -> None:
    images = np.full((12, 28, 28), 128, np.uint8)
    images[11] = 0  # in the second row, the second one
    rows = [{"truth": "coat", "answer": "dress"}] * 12
    found = pixels(figures.predictions(rows, images))
    black, orange = found.max(axis=2) < 10, found[..., 0] - found[..., 2] > 60
    down, right = (places.mean() / size for places, size in zip(np.nonzero(black), black.shape, strict=True))
    assert 0.7 < down < 0.85
    assert 0.1 < right < 0.2
    written = orange.any(axis=1)
    assert not written[black.any(axis=1)].any()
    assert written[: black.any(axis=1).argmax()].any()
