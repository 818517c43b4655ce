"""Sheets of images: each lies where its row and its place say."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fmnist_tasks.evaluation import figures


def black(picture: bytes) -> np.ndarray:
    """Which pixels of a PNG file are black, (height, width)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L")) < 10


def test_a_class_has_a_row_of_its_images_and_one_without_images_an_empty_row() -> None:
    images, labels = np.zeros((9, 28, 28), np.uint8), np.full(9, 1, np.uint8)
    found = black(figures.class_samples(images, labels, ["coat", "dress", "bag"]))
    right = found[:, found.shape[1] // 2 :]  # beside the names
    rows = np.flatnonzero(right.any(axis=1)) / len(found)
    assert 0.3 < rows.min() < 0.4
    assert 0.6 < rows.max() < 0.7
    assert right.any(axis=0).mean() > 0.6  # they go on to the edge


def test_a_prediction_has_its_image_and_its_text_in_its_place() -> None:
    images = np.full((12, 28, 28), 128, np.uint8)
    images[11] = 0  # in the second row, the second one
    rows = [{"truth": "coat", "answer": "dress"}] * 12
    found = black(figures.predictions(rows, images))
    down, right = (places.mean() / size for places, size in zip(np.nonzero(found), found.shape, strict=True))
    assert 0.7 < down < 0.85
    assert 0.1 < right < 0.2
