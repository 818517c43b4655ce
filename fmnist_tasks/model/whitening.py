"""The initial kernel of the first convolution: filters that whiten image patches.

Neighbouring pixels are nearly equal, so random filters mostly measure the brightness of a patch. The principal
components of patches, each divided by its standard deviation, respond equally to all variation (Coates and Ng 2012,
"Learning feature representations with k-means"). Each is used with both signs, for the ReLU, as in
KellerJordan/cifar10-airbench.
"""

from __future__ import annotations

import math

import numpy as np

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.model.mini_batches import add_channel_axis

_MAX_IMAGES = 2_000  # training images whose patches are used
_EPSILON = 5e-4  # added to each variance (of pixels in 0..1), so rare components are not amplified too much


def init_whitening_kernel(kernel: np.ndarray, training: ShardedImages) -> np.ndarray:
    """Replace the first filters of a kernel (H, W, C, F), float32, by whitening filters.

    Each component has two filters, one for each sign, and those with the largest variance come first. Filters beyond
    twice the number of components do not change.
    """
    chosen = np.random.default_rng(0).permutation(len(training))[:_MAX_IMAGES]
    pixels = add_channel_axis(training.read_images(chosen)) / np.float32(255)
    patches = np.lib.stride_tricks.sliding_window_view(pixels, kernel.shape[:2], axis=(1, 2))  # (N, …, C, H, W)
    patches = np.moveaxis(patches, 3, -1).reshape(-1, math.prod(kernel.shape[:3]))
    variances, components = np.linalg.eigh(np.cov(patches.T))
    scaled = (components / np.sqrt(variances + _EPSILON))[:, ::-1]
    filters = np.stack([scaled, -scaled], axis=-1).reshape(*kernel.shape[:3], -1)[..., : kernel.shape[-1]]
    replaced: np.ndarray = kernel.copy()
    replaced[..., : filters.shape[-1]] = filters
    return replaced
