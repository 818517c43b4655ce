"""Batches for training, validation and prediction; those for training a whole epoch at a time in numpy.

Flip, shift: the usual augmentations of CIFAR training; cut-out: DeVries and Taylor 2017, arXiv:1708.04552.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from fmnist_tasks.settings import Profile

PREDICTION_BATCH = 500  # images; fixed, since another batch size may change the last bit of a prediction
_AHEAD = 2  # batches made ready while one is used


def training_batches(images: np.ndarray, labels: np.ndarray, profile: Profile, seed: int) -> tf.data.Dataset:
    """Batches of uint8 images (B, 28, 28, 1) and labels (B,); a new order and new variants in every epoch."""
    random = np.random.default_rng(seed)
    # The last part batch is left out: its statistics would be those of a handful of images.
    count, size = max(1, len(labels) // profile.batch_size), profile.batch_size

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = random.permutation(len(labels))
        variants = augmented(images[order], profile, random)[..., None]
        for start in range(0, count * size, size):
            yield variants[start : start + size], labels[order[start : start + size]]

    signature = tuple(tf.TensorSpec((None, *array.shape[1:]), tf.uint8) for array in (images[..., None], labels))
    batches = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    return _steady(batches.apply(tf.data.experimental.assert_cardinality(count)))


def ordered_batches(*arrays: np.ndarray) -> tf.data.Dataset:
    """The arrays in their order, for predictions and validation."""
    return _steady(tf.data.Dataset.from_tensor_slices(arrays).batch(PREDICTION_BATCH))


def _steady(batches: tf.data.Dataset) -> tf.data.Dataset:
    """With a fixed look-ahead instead of an autotuned one.

    The autotuner of TensorFlow 2.21 looks again after 10 ms, 20 ms, 40 ms and so on, and the end of an iterator waits
    for its next look: up to as long as the epoch took.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(_AHEAD).with_options(options)


def augmented(images: np.ndarray, profile: Profile, random: np.random.Generator) -> np.ndarray:
    """Images (N, 28, 28), each mirrored with probability 1/2, shifted and cut as asked; the input is changed."""
    count, side = len(images), images.shape[1]
    mirrored = random.random(count) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    if profile.shift:
        reach = range(-profile.shift, profile.shift + 1)
        moves = random.integers(-profile.shift, profile.shift, (count, 2), endpoint=True)
        padded = np.pad(images, ((0, 0), (profile.shift,) * 2, (profile.shift,) * 2))
        for down in reach:
            for right in reach:
                rows = np.flatnonzero((moves == (down, right)).all(axis=1))
                top, left = profile.shift - down, profile.shift - right
                images[rows] = padded[rows, top : top + side, left : left + side]
    if profile.cut_out:
        corners = random.integers(0, side - profile.cut_out, (count, 2), endpoint=True)
        offsets = np.arange(profile.cut_out)
        rows = (corners[:, 0, None] + offsets)[:, :, None]
        columns = (corners[:, 1, None] + offsets)[:, None, :]
        images[np.arange(count)[:, None, None], rows, columns] = 0
    return images
