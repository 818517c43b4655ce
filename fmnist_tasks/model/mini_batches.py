"""Batches for training and prediction; NumPy augments a whole window of training images at a time.

Horizontal flip and translation are the usual augmentations of CIFAR training; CutMix: Yun et al. 2019,
arXiv:1905.04899.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.settings import Stage

PREDICTION_BATCH = 500  # images; fixed, since another batch size can change the last bit of a prediction


def make_training_batches(
    training: ShardedImages, stage: Stage, classes: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of augmented images (B, H, W, 1), uint8, and targets (B, classes), float32, in random order.

    A target is the share of the image's area that shows each class. Order and augmentation depend on seed and epoch
    only, so resumed training gets the same batches.
    """
    random = np.random.default_rng((seed, epoch))
    size = choose_batch_size(len(training), stage)
    for images, labels in training.iterate_windows(seed, epoch):
        order = random.permutation(len(labels))
        augmented, targets = augment(images[order], stage, random), np.eye(classes, dtype=np.float32)[labels[order]]
        augmented, targets = cutmix(augmented, targets, stage.cutmix, random)
        # The last, incomplete batch is dropped: its statistics, for batch normalisation, are those of a few images.
        for start in range(0, len(labels) // size * size, size):
            yield augmented[start : start + size, ..., None], targets[start : start + size]


def count_batches(training: ShardedImages, stage: Stage) -> int:
    """The number of batches in an epoch."""
    size = choose_batch_size(len(training), stage)
    return sum(window // size for window in training.window_sizes)


def choose_batch_size(images: int, stage: Stage) -> int:
    """The batch size: smaller for a small dataset, for about 20 steps per epoch, but at least 16 images if possible."""
    return min(stage.batch_size, max(images // 20, 16), images)


def make_prediction_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Batches (B, H, W, 1), uint8, of images (N, H, W), uint8, in the same order."""
    for start in range(0, len(images), PREDICTION_BATCH):
        yield images[start : start + PREDICTION_BATCH, ..., None]


def augment(images: np.ndarray, stage: Stage, random: np.random.Generator) -> np.ndarray:
    """Flip images (N, H, W), uint8, horizontally with p = 0.5 and shift them by up to `stage.shift`, in place."""
    count, side = len(images), images.shape[1]
    flipped = random.random(count) < 0.5
    images[flipped] = images[flipped, :, ::-1]
    if shift := stage.shift:
        offsets = range(-shift, shift + 1)
        moves = random.integers(-shift, shift, (count, 2), endpoint=True)
        padded = np.pad(images, ((0, 0), (shift,) * 2, (shift,) * 2))
        for down in offsets:
            for right in offsets:
                rows = np.flatnonzero((moves == (down, right)).all(axis=1))
                top, left = shift - down, shift - right
                images[rows] = padded[rows, top : top + side, left : left + side]
    return images


def cutmix(
    images: np.ndarray, targets: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Apply CutMix to a share of images (N, H, W), uint8, and mix their targets (N, classes), float32, by area.

    The square comes from the previous image. Its area and its centre are uniform, so it may extend beyond the edge.
    """
    if not share:
        return images, targets
    count, side = images.shape[:2]
    half = side / 2 * np.sqrt(random.random((count, 1))) * (random.random((count, 1)) < share)
    rows, columns = np.abs(np.arange(side) + 0.5 - random.uniform(0, side, (2, count, 1))) < half
    square = rows[:, :, None] & columns[:, None, :]
    area = square.mean(axis=(1, 2), dtype=np.float32)[:, None]
    return np.where(square, np.roll(images, 1, 0), images), (1 - area) * targets + area * np.roll(targets, 1, 0)
