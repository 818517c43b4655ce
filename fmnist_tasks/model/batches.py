"""Batches for training and prediction; those for training a whole window of images at a time in numpy.

Flip, shift: the usual augmentations of CIFAR training; cut-mix: Yun et al. 2019, arXiv:1905.04899.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fmnist_tasks.data.shards import Training
from fmnist_tasks.settings import Stage

PREDICTION_BATCH = 500  # images; fixed, since another batch size may change the last bit of a prediction


def training_batches(
    training: Training, stage: Stage, classes: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of images, uint8 (B, 28, 28, 1), in an order and in variants of this epoch's own, and their targets.

    Targets are float32 (B, classes): how much of an image shows each class. Both follow from seed and epoch alone, so
    that a training which goes on after an interruption sees what it would have seen.
    """
    random = np.random.default_rng((seed, epoch))
    size = batch_size(len(training), stage)
    for images, labels in training.windows(seed, epoch):
        order = random.permutation(len(labels))
        variants, targets = augmented(images[order], stage, random), np.eye(classes, dtype=np.float32)[labels[order]]
        variants, targets = mixed(variants, targets, stage.cut_mix, random)
        # The last part batch is left out: its statistics would be those of a handful of images.
        for start in range(0, len(labels) // size * size, size):
            yield variants[start : start + size, ..., None], targets[start : start + size]


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
    """Images (N, 28, 28), each mirrored with probability 1/2 and shifted as asked; the input is changed."""
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
    return images


def mixed(
    images: np.ndarray, targets: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28), that share of them with a square of the one before in it, and targets by the area of each.

    The square's area and its middle are uniform over the image, so it may reach beyond the edge.
    """
    if not share:
        return images, targets
    count, side = images.shape[:2]
    reach = side / 2 * np.sqrt(random.random((count, 1))) * (random.random((count, 1)) < share)
    rows, columns = np.abs(np.arange(side) + 0.5 - random.uniform(0, side, (2, count, 1))) < reach
    square = rows[:, :, None] & columns[:, None, :]
    area = square.mean(axis=(1, 2), dtype=np.float32)[:, None]
    return np.where(square, np.roll(images, 1, 0), images), (1 - area) * targets + area * np.roll(targets, 1, 0)
