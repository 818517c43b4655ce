"""Batches for training and prediction; NumPy augments a whole window of training images at a time.

Horizontal flip and translation are the usual augmentations of CIFAR training; CutMix: Yun et al. 2019,
arXiv:1905.04899.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.settings import Stage

_PIXELS = 28 * 28  # of the images for which PREDICTION_BATCH was chosen
PREDICTION_BATCH = 500  # images; fixed, since another batch size can change the last bit of a prediction


def make_training_batches(
    training: ShardedImages, stage: Stage, classes: int, seed: int, epoch: int, *, flip: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of augmented images (B, H, W, C), uint8, and targets (B, classes), float32, in random order.

    With `flip`, half of the images are flipped horizontally. A target is the share of the image's area that shows each
    class. Order and augmentation depend on seed and epoch only, so resumed training gets the same batches.
    """
    random = np.random.default_rng((seed, epoch))
    size = choose_batch_size(len(training), stage)
    for images, labels in training.iterate_windows(seed, epoch):
        order = random.permutation(len(labels))
        augmented, targets = (
            augment(images[order], stage, random, flip=flip),
            np.eye(classes, dtype=np.float32)[labels[order]],
        )
        augmented, targets = cutmix(augmented, targets, stage.cutmix, random)
        # The last, incomplete batch is dropped: its statistics, for batch normalisation, are those of a few images.
        for start in range(0, len(labels) // size * size, size):
            yield add_channel_axis(augmented[start : start + size]), targets[start : start + size]


def count_batches(training: ShardedImages, stage: Stage) -> int:
    """The number of batches in an epoch."""
    size = choose_batch_size(len(training), stage)
    return sum(window // size for window in training.window_sizes)


def choose_batch_size(images: int, stage: Stage) -> int:
    """The batch size: smaller for a small dataset, for about 20 steps per epoch, but at least 16 images if possible."""
    return min(stage.batch_size, max(images // 20, 16), images)


def make_prediction_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Batches (B, H, W, C), uint8, of images uint8 (N, H, W) or (N, H, W, C), in the same order."""
    size = choose_prediction_batch_size(images.shape[1:])
    for start in range(0, len(images), size):
        yield add_channel_axis(images[start : start + size])


def choose_prediction_batch_size(shape: tuple[int, ...]) -> int:
    """The batch size for images (H, W) or (H, W, C); smaller for large images, whose activations need more memory."""
    return max(1, min(PREDICTION_BATCH, PREDICTION_BATCH * _PIXELS // (shape[0] * shape[1])))


def add_channel_axis(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C), of images (N, H, W) or (N, H, W, C)."""
    return images if images.ndim == 4 else images[..., None]


def augment(images: np.ndarray, stage: Stage, random: np.random.Generator, *, flip: bool) -> np.ndarray:
    """Change images uint8 (N, H, W) or (N, H, W, C) in place: horizontal flips, and shifts by up to `stage.shift`."""
    count, (height, width) = len(images), images.shape[1:3]
    if flip:
        flipped = random.random(count) < 0.5
        images[flipped] = images[flipped, :, ::-1]
    if shift := stage.shift:
        offsets = range(-shift, shift + 1)
        moves = random.integers(-shift, shift, (count, 2), endpoint=True)
        padded = np.pad(images, ((0, 0), (shift,) * 2, (shift,) * 2, *[(0, 0)] * (images.ndim - 3)))
        for down in offsets:
            for right in offsets:
                rows = np.flatnonzero((moves == (down, right)).all(axis=1))
                top, left = shift - down, shift - right
                images[rows] = padded[rows, top : top + height, left : left + width]
    return images


def cutmix(
    images: np.ndarray, targets: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Apply CutMix to a share of images uint8 (N, H, W) or (N, H, W, C); mix targets (N, classes), float32, by area.

    The rectangle, of the proportions of the image, comes from the previous image. Its area and its centre are uniform,
    so it may extend beyond the edge.
    """
    if not share:
        return images, targets
    count, (height, width) = len(images), images.shape[1:3]
    half = np.sqrt(random.random((count, 1))) * (random.random((count, 1)) < share) / 2
    vertical, horizontal = random.random((2, count, 1))
    rows = np.abs(np.arange(height) + 0.5 - height * vertical) < height * half
    columns = np.abs(np.arange(width) + 0.5 - width * horizontal) < width * half
    rectangle = rows[:, :, None] & columns[:, None, :]
    area = rectangle.mean(axis=(1, 2), dtype=np.float32)[:, None]
    rectangle = rectangle.reshape(*rectangle.shape, *[1] * (images.ndim - 3))
    return np.where(rectangle, np.roll(images, 1, 0), images), (1 - area) * targets + area * np.roll(targets, 1, 0)
