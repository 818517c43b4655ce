"""Training batches: shuffled, mirrored, shifted and cut, a whole epoch at a time in numpy.

Flip, shift: the usual augmentations of CIFAR training; cut-out: DeVries and Taylor 2017, arXiv:1708.04552.
"""

from __future__ import annotations

import keras
import numpy as np

from fmnist_tasks.settings import Profile


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of uint8 images (B, 28, 28, 1) and labels (B,); a new order and new variants every epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, profile: Profile, seed: int) -> None:
        super().__init__()
        self._images, self._labels, self._profile = images, labels, profile
        self._random = np.random.default_rng(seed)
        self._draw()

    def __len__(self) -> int:
        # The last part batch is left out: its statistics would be those of a handful of images.
        return max(1, len(self._labels) // self._profile.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(index * self._profile.batch_size, (index + 1) * self._profile.batch_size)
        return self._epoch_images[rows, :, :, None], self._epoch_labels[rows]

    def on_epoch_end(self) -> None:
        """Draw the next epoch."""
        self._draw()

    def _draw(self) -> None:
        order = self._random.permutation(len(self._labels))
        self._epoch_images = augmented(self._images[order], self._profile, self._random)
        self._epoch_labels = self._labels[order]


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
