"""Where the first convolution starts: filters whose answers to the training images are alike in strength."""

from __future__ import annotations

import numpy as np

from fmnist_tasks.data.shards import Training
from fmnist_tasks.model.whitening import whitened
from tests.support import synthetic


def answers(kernel: np.ndarray, images: np.ndarray) -> np.ndarray:
    """What each filter says of each square of 3 x 3 pixels, (N * 26 * 26, F)."""
    squares = np.lib.stride_tricks.sliding_window_view(images / 255.0, (3, 3), axis=(1, 2)).reshape(-1, 9)
    return squares @ kernel.reshape(9, -1)


def test_answers_are_uncorrelated_equally_strong_and_come_in_opposites() -> None:
    images, labels = synthetic.make_images(500, 1)
    kernel = whitened(np.zeros((3, 3, 1, 18), np.float32), Training.of(images, labels))
    np.testing.assert_array_equal(kernel[..., 0::2], -kernel[..., 1::2])
    covariance = np.cov(answers(kernel[..., 0::2], images).T)
    np.testing.assert_allclose(covariance, np.diag(covariance.diagonal()), atol=1e-3)
    assert (covariance.diagonal() > 0.8).all()  # those that hardly occur are not blown up to the whole
    assert (covariance.diagonal() < 1.01).all()
    random = np.random.default_rng(0).normal(size=(3, 3, 1, 9))
    assert np.linalg.cond(np.cov(answers(random, images).T)) > 10  # filters that are no whitening ones differ


def test_the_most_common_components_come_first_and_filters_beyond_all_of_them_stay() -> None:
    images, labels = synthetic.make_images(500, 1)
    training = Training.of(images, labels)
    some, many = np.ones((3, 3, 1, 4), np.float32), np.ones((3, 3, 1, 20), np.float32)
    few, all_of_them = whitened(some, training), whitened(many, training)
    np.testing.assert_array_equal(few, all_of_them[..., :4])
    assert (some == 1).all()
    assert (all_of_them[..., 18:] == 1).all()
    lengths = np.linalg.norm(all_of_them[..., :18:2].reshape(9, -1), axis=0)
    assert (np.diff(lengths) > 0).all()  # what varies less is amplified more


def test_images_of_one_shade_give_filters_that_are_numbers() -> None:
    images = np.full((20, 28, 28), 100, np.uint8)
    kernel = whitened(np.zeros((3, 3, 1, 16), np.float32), Training.of(images, np.zeros(20, np.uint8)))
    assert np.isfinite(kernel).all()
