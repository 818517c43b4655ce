"""Batches for training and prediction; those for training a whole window of images at a time in numpy.

Flip, shift: the usual augmentations of CIFAR training; cut-out: DeVries and Taylor 2017, arXiv:1708.04552.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fmnist_tasks.data.shards import Training
from fmnist_tasks.settings import Stage

PREDICTION_BATCH = 500  # images; fixed, since another batch size may change the last bit of a prediction


def training_batches(
    training: Training, stage: Stage, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of uint8 images (B, 28, 28, 1) and labels (B,), in an order and in variants of this epoch's own.

    They follow from seed and epoch alone, so that a training which goes on after an interruption sees what it would
    have seen.
    """
    random = np.random.default_rng((seed, epoch))
    size = batch_size(len(training), stage)
    for images, labels in training.windows(seed, epoch):
        order = random.permutation(len(labels))
        variants, labels = augmented(images[order], stage, random)[..., None], labels[order]
        # The last part batch is left out: its statistics would be those of a handful of images.
        for start in range(0, len(labels) // size * size, size):
            yield variants[start : start + size], labels[start : start + size]


def batch_count(training: Training, stage: Stage) -> int:
    """Batches of an epoch."""
    size = batch_size(len(training), stage)
    return sum(window // size for window in training.sizes)


def batch_size(images: int, stage: Stage) -> int:
    """Images in a batch: fewer for a small dataset, so that an epoch has some 20 steps; 16 at least, if there are."""
    return min(stage.batch_size, max(images // 20, 16), images)


def prediction_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """The uint8 images (N, 28, 28) in their order, as (B, 28, 28, 1)."""
    for start in range(0, len(images), PREDICTION_BATCH):
        yield images[start : start + PREDICTION_BATCH, ..., None]


def augmented(images: np.ndarray, stage: Stage, random: np.random.Generator) -> np.ndarray:
    """Images (N, 28, 28), each mirrored with probability 1/2, shifted and cut as asked; the input is changed."""
    count, side = len(images), images.shape[1]
    mirrored = random.random(count) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    if shift := stage.shift:
        reach = range(-shift, shift + 1)
        moves = random.integers(-shift, shift, (count, 2), endpoint=True)
        padded = np.pad(images, ((0, 0), (shift,) * 2, (shift,) * 2))
        for down in reach:
            for right in reach:
                rows = np.flatnonzero((moves == (down, right)).all(axis=1))
                top, left = shift - down, shift - right
                images[rows] = padded[rows, top : top + side, left : left + side]
    if cut_out := stage.cut_out:
        corners = random.integers(0, side - cut_out, (count, 2), endpoint=True)
        offsets = np.arange(cut_out)
        rows = (corners[:, 0, None] + offsets)[:, :, None]
        columns = (corners[:, 1, None] + offsets)[:, None, :]
        images[np.arange(count)[:, None, None], rows, columns] = 0
    return images
