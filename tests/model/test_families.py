"""OOD images belong to their family, follow from the seed, and are never images of the dataset."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.model.ood.families import FAMILIES, TRAINING_FAMILIES, make_ood_images
from tests.support import synthetic

IMAGES = synthetic.make_images(200, 1)[0]


def make_images(family: str, count: int = 100, seed: int = 0) -> np.ndarray:
    return make_ood_images(family, IMAGES, count, seed)


def find_sources(ood_images: np.ndarray) -> np.ndarray:
    """The images of the dataset that have the same pixels as OOD images (N, H, W), in any order."""
    by_pixels = {np.sort(image, axis=None).tobytes(): image for image in IMAGES}
    return np.stack([by_pixels[np.sort(image, axis=None).tobytes()] for image in ood_images])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_reproducible_and_has_no_image_of_the_dataset(family: str) -> None:
    ood_images = make_images(family)
    assert (ood_images.shape, ood_images.dtype) == ((100, 28, 28), np.uint8)
    np.testing.assert_array_equal(ood_images, make_images(family))
    assert not np.array_equal(ood_images, make_images(family, seed=1))
    assert not {image.tobytes() for image in ood_images} & {image.tobytes() for image in IMAGES}
    assert len({image.tobytes() for image in ood_images}) > 50  # one shade has 256 at most
    assert make_images(family, count=1000).shape == IMAGES.shape  # at most as many as the dataset has


def test_the_detector_is_fitted_on_eight_families_and_evaluated_on_eight_more() -> None:
    assert len(TRAINING_FAMILIES) == 8
    unseen = {"Gaussian noise", "dim noise", "bright noise", "one shade", "photo textures", "digits"}
    assert set(FAMILIES) - set(TRAINING_FAMILIES) == unseen | {"overlaid", "cut and mixed"}


def test_noise_and_shades_have_their_ranges() -> None:
    assert abs(make_images("uniform noise").mean() - 127.5) < 1
    assert 50 < make_images("Gaussian noise").std() < 64  # clipped at both ends
    assert make_images("dim noise").max() == 47
    assert make_images("bright noise").min() == 208
    shades = make_images("one shade")
    np.testing.assert_array_equal(shades.min(axis=(1, 2)), shades.max(axis=(1, 2)))


def test_upside_down_rotated_and_inverted_images_come_from_the_dataset() -> None:
    flipped = make_images("upside down")
    np.testing.assert_array_equal(flipped[:, ::-1], find_sources(flipped))
    rotated = make_images("rotated by 90°")
    before = find_sources(rotated)
    left = (np.rot90(before, 1, (1, 2)) == rotated).all(axis=(1, 2))
    right = (np.rot90(before, -1, (1, 2)) == rotated).all(axis=(1, 2))
    assert (left ^ right).all()
    assert 30 < left.sum() < 70
    np.testing.assert_array_equal(find_sources(255 - make_images("inverted")), 255 - make_images("inverted"))


def test_permuted_jigsaw_and_pixelated_images_come_from_the_dataset() -> None:
    for family in ("permuted pixels", "jigsaw"):
        ood_images = make_images(family)
        assert (ood_images != find_sources(ood_images)).mean() > 0.3
    pieces = make_images("jigsaw").reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(100, 16, 49)
    before = find_sources(make_images("jigsaw")).reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(100, 16, 49)
    for after, original in zip(pieces, before, strict=True):
        assert sorted(map(bytes, after)) == sorted(map(bytes, original))
    for image in make_images("pixelated"):
        assert any(
            all((np.ptp(image[top : top + size, left : left + size]) == 0) for top in edges for left in edges)
            for size, edges in ((size, range(0, 28, size)) for size in (3, 4, 5))
        )


def test_overlaid_and_mixed_images_combine_two_of_the_dataset() -> None:
    halves = {image[:, :14].tobytes() for image in IMAGES}, {image[:, 14:].tobytes() for image in IMAGES}
    for image in make_images("cut and mixed"):
        assert image[:, :14].tobytes() in halves[0]
        assert image[:, 14:].tobytes() in halves[1]
    for image in make_images("overlaid"):
        sources = (image >= IMAGES).all(axis=(1, 2)).sum()
        assert sources >= 2


def test_textures_and_digits_are_rendered() -> None:
    textures = make_images("photo textures")
    assert textures.std(axis=(1, 2)).mean() > 5  # some crops show only sky
    digits = make_images("digits")
    assert (digits[:, :2] == 0).all()
    assert (digits.max(axis=(1, 2)) > 200).all()
