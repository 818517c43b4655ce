"""Synthetic images: ten simple patterns of 28 x 28 pixels, as arrays and as IDX files with a declaration."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
from pathlib import Path

import numpy as np

from fmnist_tasks.schemas.data import DatasetProperties, ImageFormat
from fmnist_tasks.settings import Parameters
from fmnist_tasks.steps import Run

CLASSES = 10
FORMAT = ImageFormat(height=28, width=28, channels=1, horizontal_flip=True, upright=True)
PROPERTIES = DatasetProperties(
    name="synthetic",
    classes=[f"pattern {number}" for number in range(CLASSES)],
    image_format=FORMAT,
    ood_label="not a pattern",
)
RUN = Run("run-1", "2026-11-23T02:00:00+00:00", Parameters(profile="quick"))


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (count, 28, 28) and labels (count,), both uint8, with balanced classes."""
    patterns = np.kron(np.random.default_rng(7).random((CLASSES, 4, 4)) > 0.55, np.ones((7, 7)))
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % CLASSES).astype(np.uint8)
    pixels = patterns[labels] * random.uniform(150, 250, (count, 1, 1)) + random.normal(0, 12, (count, 28, 28))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def encode_idx(array: np.ndarray) -> bytes:
    """Return the array, uint8, as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def encode_npz(**arrays: np.ndarray) -> bytes:
    """Return the arrays as an uncompressed .npz, as users save them."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def write_dataset(
    folder: Path, train: int = 1600, test: int = 600, classes: int = CLASSES, **replacements: np.ndarray
) -> Path:
    """Write the four files and their declaration, and return its path; `replacements` are arrays by role."""
    arrays = dict(zip(("train_images", "train_labels"), make_images(train, 1), strict=True))
    arrays |= dict(zip(("test_images", "test_labels"), make_images(test, 2), strict=True))
    lines = [
        'name = "synthetic"',
        'title = "Synthetic patterns"',
        f"classes = {[f'pattern {i}' for i in range(classes)]}",
        'ood_label = "not a pattern"',
        "[image_format]",
        *(f"{key} = {json.dumps(value)}" for key, value in FORMAT.to_json().items() if value is not None),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for role, array in (arrays | replacements).items():
        content = encode_idx(array)
        (folder / f"{role}.gz").write_bytes(gzip.compress(content, 1, mtime=0))
        lines += [f"[files.{role}]", f'name = "{role}.gz"', f"bytes = {len(content)}"]
        lines += [f'sha256 = "{hashlib.sha256(content).hexdigest()}"']
    declaration = folder / "dataset.toml"
    declaration.write_text("\n".join(lines))
    return declaration
