"""Each image of a figure is in its row and column."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fmnist_tasks.evaluation import figures
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.steps.evaluation import draw_errors


def decode_png(picture: bytes) -> np.ndarray:
    """The pixels (H, W, 3), int, of a PNG file."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_each_class_has_a_row_which_is_empty_without_images() -> None:
    images, labels = np.zeros((9, 28, 28), np.uint8), np.full(9, 1, np.uint8)
    black = decode_png(figures.draw_class_examples(images, labels, ["coat", "dress", "bag"])).max(axis=2) < 10
    right = black[:, black.shape[1] // 2 :]  # without the names of classes
    rows = np.flatnonzero(right.any(axis=1)) / len(black)
    assert 0.3 < rows.min() < 0.4
    assert 0.6 < rows.max() < 0.7
    assert right.any(axis=0).mean() > 0.6  # images fill most of it


def test_names_of_classes_are_not_read_as_formulas() -> None:
    images, labels = np.zeros((2, 8, 8), np.uint8), np.array([0, 1], np.uint8)
    assert figures.draw_class_examples(images, labels, ["$x_$", "b^"]).startswith(b"\x89PNG")


def test_each_image_is_in_its_cell_with_its_caption_above() -> None:
    images = np.full((12, 28, 28), 128, np.uint8)
    images[11] = 0  # second row, second column
    pixels = decode_png(figures.draw_predictions(["coat"] * 12, ["dress"] * 12, images, ["coat", "dress"]))
    black, orange = pixels.max(axis=2) < 10, pixels[..., 0] - pixels[..., 2] > 60
    down, right = (positions.mean() / size for positions, size in zip(np.nonzero(black), black.shape, strict=True))
    assert 0.7 < down < 0.85
    assert 0.1 < right < 0.2
    has_text = orange.any(axis=1)
    assert not has_text[black.any(axis=1)].any()
    assert has_text[: black.any(axis=1).argmax()].any()


def test_errors_are_drawn_if_there_are_any(store: FolderStore) -> None:
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([0, 1], np.uint8)
    assert draw_errors(store, ["coat", "bag"], images, labels, np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)) == {}
    references = draw_errors(store, ["coat", "bag"], images, labels, np.array([[0.1, 0.9], [0.1, 0.9]], np.float32))
    assert decode_png(store.get(references["candidate_errors"].uri)).shape[2] == 3
