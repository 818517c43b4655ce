"""Where the first convolution starts: at filters that whiten the small squares which images are made of.

Neighbouring pixels are nearly alike, so random filters mostly see how bright a square is. The principal components of
the squares, each divided by its spread, see everything in them equally (Coates and Ng 2012, "Learning feature
representations with k-means"; taken up with both signs, for the ReLU, by KellerJordan/cifar10-airbench).
"""

from __future__ import annotations

import numpy as np

from fmnist_tasks.data.shards import Training

_IMAGES = 2_000  # training images at most whose squares are looked at
_LEAST = 5e-4  # added to each variance of pixels in 0..1, so that what hardly occurs is not blown up


def whitened(kernel: np.ndarray, training: Training) -> np.ndarray:
    """The kernel (H, W, 1, F) with its first filters replaced by whitening ones, each component and its opposite.

    Components with the greatest variance come first; filters beyond twice their number stay as they are.
    """
    chosen = np.random.default_rng(0).permutation(len(training))[:_IMAGES]
    pixels = training.images(chosen) / np.float32(255)
    squares = np.lib.stride_tricks.sliding_window_view(pixels, kernel.shape[:2], axis=(1, 2))
    variances, components = np.linalg.eigh(np.cov(squares.reshape(-1, kernel.shape[0] * kernel.shape[1]).T))
    scaled = (components / np.sqrt(variances + _LEAST))[:, ::-1]
    filters = np.stack([scaled, -scaled], axis=-1).reshape(*kernel.shape[:3], -1)[..., : kernel.shape[-1]]
    replaced: np.ndarray = kernel.copy()
    replaced[..., : filters.shape[-1]] = filters
    return replaced
