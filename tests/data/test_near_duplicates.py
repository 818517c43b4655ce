"""Near-duplicates are found whatever was changed, and different images are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fmnist_tasks.data.colour import to_luminance
from fmnist_tasks.data.near_duplicates import NearDuplicateIndex
from fmnist_tasks.data.splitting import TEST_SHARE, choose_test_images
from tests.support import synthetic

DIGITS = (load_digits().images * 15.9375).astype(np.uint8)  # 1,797 real images of 8 x 8
PHOTO = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def flip_bits(images: np.ndarray) -> np.ndarray:
    random, changed = np.random.default_rng(1), images.copy()
    for image in changed:
        image[random.integers(image.shape[0]), random.integers(image.shape[1])] ^= np.uint8(1 << random.integers(8))
    return changed


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda images: images,
    "one bit": flip_bits,
    "left": lambda images: np.roll(images, -1, axis=2),
    "down and right": lambda images: np.roll(images, (1, 1), axis=(1, 2)),
    "flipped": lambda images: images[:, :, ::-1],
    "brighter": lambda images: np.clip(images * 1.04, 0, 255).astype(np.uint8),
    "darker": lambda images: (images * 0.96).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("images", [DIGITS, PHOTO], ids=["digits", "photo"])
def test_a_changed_copy_is_found(change: str, images: np.ndarray) -> None:
    found = NearDuplicateIndex(images).find(CHANGES[change](images))
    assert (found.positions == np.arange(len(images))).mean() >= 0.98
    assert found.correlations[found.positions >= 0].min() >= 0.998


def test_different_images_are_not_near_duplicates() -> None:
    found = NearDuplicateIndex(DIGITS[:1000]).find(DIGITS[1000:])
    assert (found.positions >= 0).sum() <= 2
    assert set(found.correlations[found.positions < 0]) == {0}


def test_of_several_indexed_images_all_but_the_first_have_a_near_duplicate() -> None:
    images = np.concatenate([DIGITS[:100], np.roll(DIGITS[:50], 1, axis=1)])
    found = NearDuplicateIndex(images).find(images, own=np.arange(len(images)))
    assert found.positions.tolist() == [*[-1] * 100, *range(50)]


def test_added_images_follow_the_others() -> None:
    index = NearDuplicateIndex(DIGITS[:100])
    for start in range(100, 500, 50):  # segments of different sizes are merged
        index.add(DIGITS[start : start + 50])
    assert len(index) == 500
    found = index.find(flip_bits(DIGITS[:600]))
    assert (found.positions[:500] == np.arange(500)).mean() >= 0.98
    assert (found.positions[500:] >= 0).sum() <= 2


def test_an_index_may_begin_empty() -> None:
    index = NearDuplicateIndex(DIGITS[:0])
    assert (index.find(DIGITS[:3]).positions == -1).all()
    index.add(DIGITS[:10])
    assert index.find(DIGITS[:10]).positions.tolist() == list(range(10))


def test_images_of_another_colour_are_not_near_duplicates() -> None:
    """In greyscale they are equal."""
    shades = DIGITS[:100].astype(np.float32)[..., None]
    red, green = ((shades * np.array(tint) * 0.4).astype(np.uint8) for tint in ((2.0, 0.684, 0.0), (0.0, 1.704, 0.0)))
    assert np.abs(to_luminance(red).astype(int) - to_luminance(green)).max() <= 2
    index = NearDuplicateIndex(red)
    assert (index.find(green).positions == -1).all()
    for changed in (red, red[:, :, ::-1], np.roll(red, 1, axis=1), (red * 0.97).astype(np.uint8)):
        assert (index.find(changed).positions >= 0).mean() >= 0.98


def test_an_earlier_group_comes_before_a_better_match() -> None:
    shifted = np.roll(DIGITS[:3], 1, axis=2)
    index = NearDuplicateIndex(DIGITS[10:20], shifted, DIGITS[:3])
    assert index.find(DIGITS[:3]).positions.tolist() == [10, 11, 12]
    assert index.find(DIGITS[:3], group=2).positions.tolist() == [13, 14, 15]
    assert index.find(DIGITS[10:12], group=1).positions.tolist() == [-1, -1]


def test_new_images_are_compared_with_known_ones_and_with_each_other() -> None:
    index = NearDuplicateIndex(DIGITS[:50], DIGITS[50:60])
    new = np.concatenate([DIGITS[100:103], np.roll(DIGITS[55:56], 1, axis=1), np.roll(DIGITS[100:102], 1, axis=2)])
    assert index.find_new(new).positions.tolist() == [-1, -1, -1, 55, 60, 61]
    assert len(index) == 60


@pytest.mark.parametrize("count", [10_000, 30_000])
def test_near_duplicates_are_found_among_many_similar_images(count: int) -> None:
    """Ten patterns with noise: thousands of images have the same code in a table."""
    images = np.concatenate([synthetic.make_images(10_000, seed)[0] for seed in range(count // 10_000)])
    index = NearDuplicateIndex(images)
    for start in (0, count // 2, count - 500):
        query = images[start : start + 500]
        assert (index.find(query).positions >= 0).all()
        assert (index.find(np.roll(query, 1, axis=2)).positions >= 0).all()
        assert (index.find(flip_bits(query)).positions >= 0).mean() >= 0.85


def test_many_copies_of_one_image_take_linear_time() -> None:
    """With all pairs, 20,000 copies would take 400 million comparisons."""
    images = np.repeat(DIGITS[:1], 20_000, axis=0)
    found = NearDuplicateIndex(images).find(images, own=np.arange(len(images)))
    assert (found.positions[1:] >= 0).all()


def test_flat_images_are_near_duplicates_of_each_other_only() -> None:
    flat = np.stack([np.full((8, 8), shade, np.uint8) for shade in (0, 5, 200)])
    found = NearDuplicateIndex(np.concatenate([flat[:1], DIGITS[:50]])).find(flat)
    assert found.positions.tolist() == [0, 0, -1]


def test_no_test_image_has_a_near_duplicate_in_training() -> None:
    """A third of the images is repeated, changed; each class keeps its share."""
    labels = load_digits().target
    images = np.concatenate([DIGITS, np.roll(DIGITS[:300], 1, axis=2), flip_bits(DIGITS[300:600])])
    labels = np.concatenate([labels, labels[:600]])
    chosen = choose_test_images(images, labels)
    training = np.delete(images, chosen, axis=0)
    assert (NearDuplicateIndex(training).find(images[chosen]).positions >= 0).sum() == 0
    shares = np.bincount(labels[chosen]) / np.bincount(labels)
    assert np.abs(shares - TEST_SHARE).max() < 0.01


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("images", [DIGITS, PHOTO], ids=["digits", "photo"])
def test_an_image_with_up_to_three_changed_pixels_is_found(images: np.ndarray, count: int) -> None:
    random, changed = np.random.default_rng(2), images.copy()
    for image in changed:
        for _ in range(count):
            image[random.integers(image.shape[0]), random.integers(image.shape[1])] = random.choice([0, 255])
    assert (NearDuplicateIndex(images).find(changed).positions >= 0).mean() >= 0.995


@pytest.mark.parametrize("shape", [(65, 8), (8, 96, 3), (96, 9), (33, 31)])
def test_different_images_of_any_shape_are_not_near_duplicates(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, *shape), np.uint8)
    index = NearDuplicateIndex(images[:100])
    assert (index.find(images[100:]).positions == -1).all()
    assert (index.find(np.roll(images[:100], 1, axis=1)).positions == np.arange(100)).mean() >= 0.98
