"""The initial kernel of the first convolution: filters whose responses to training images have equal variance."""

from __future__ import annotations

import numpy as np

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.model.whitening import init_whitening_kernel
from tests.support import synthetic


def compute_responses(kernel: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The response of each filter to each patch of 3 x 3 pixels of images (N, H, W), uint8, as (patches, F)."""
    patches = np.lib.stride_tricks.sliding_window_view(images / 255.0, (3, 3), axis=(1, 2)).reshape(-1, 9)
    return patches @ kernel.reshape(9, -1)


def test_responses_are_uncorrelated_have_equal_variance_and_come_in_opposite_pairs() -> None:
    images, labels = synthetic.make_images(500, 1)
    kernel = init_whitening_kernel(np.zeros((3, 3, 1, 18), np.float32), ShardedImages.from_arrays(images, labels))
    np.testing.assert_array_equal(kernel[..., 0::2], -kernel[..., 1::2])
    covariance = np.cov(compute_responses(kernel[..., 0::2], images).T)
    np.testing.assert_allclose(covariance, np.diag(covariance.diagonal()), atol=1e-3)
    assert (covariance.diagonal() > 0.8).all()  # rare components are not amplified fully
    assert (covariance.diagonal() < 1.01).all()
    random = np.random.default_rng(0).normal(size=(3, 3, 1, 9))
    assert np.linalg.cond(np.cov(compute_responses(random, images).T)) > 10  # unlike random filters


def test_the_largest_components_come_first_and_filters_beyond_all_of_them_stay() -> None:
    images, labels = synthetic.make_images(500, 1)
    training = ShardedImages.from_arrays(images, labels)
    small, large = np.ones((3, 3, 1, 4), np.float32), np.ones((3, 3, 1, 20), np.float32)
    few, all_filters = init_whitening_kernel(small, training), init_whitening_kernel(large, training)
    np.testing.assert_array_equal(few, all_filters[..., :4])
    assert (small == 1).all()
    assert (all_filters[..., 18:] == 1).all()
    lengths = np.linalg.norm(all_filters[..., :18:2].reshape(9, -1), axis=0)
    assert (np.diff(lengths) > 0).all()  # components with less variance are amplified more


def test_images_of_one_shade_give_finite_filters() -> None:
    images = np.full((20, 28, 28), 100, np.uint8)
    kernel = init_whitening_kernel(
        np.zeros((3, 3, 1, 16), np.float32), ShardedImages.from_arrays(images, np.zeros(20, np.uint8))
    )
    assert np.isfinite(kernel).all()
