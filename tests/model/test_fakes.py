"""Fake images are what their family says, follow from the seed, and are never the real ones."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.model.fakes import FAMILIES, SHOWN, fake_images
from tests.support import synthetic

REAL = synthetic.make_images(200, 1)[0]


def fakes(family: str, count: int = 100, seed: int = 0) -> np.ndarray:
    return fake_images(family, REAL, count, seed)


def picked(family: str, fake: np.ndarray) -> np.ndarray:
    """The real images that those of a family were made from, found again by their pixels in any order."""
    known = {np.sort(image, axis=None).tobytes(): image for image in REAL}
    return np.stack([known[np.sort(image, axis=None).tobytes()] for image in fake])


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_family(family: str) -> None:
    fake = fakes(family)
    assert (fake.shape, fake.dtype) == ((100, 28, 28), np.uint8)
    np.testing.assert_array_equal(fake, fakes(family))
    assert not np.array_equal(fake, fakes(family, seed=1))
    assert not {image.tobytes() for image in fake} & {image.tobytes() for image in REAL}
    assert len({image.tobytes() for image in fake}) > 50  # one shade has 256 at most
    assert fakes(family, count=1000).shape == REAL.shape  # no more than there are real ones


def test_what_is_shown_in_fitting_leaves_families_for_judging() -> None:
    assert len(SHOWN) == 8
    unseen = {"Gaussian noise", "dim noise", "bright noise", "one shade", "photo textures", "digits"}
    assert set(FAMILIES) - set(SHOWN) == unseen | {"overlaid", "cut and mixed"}


def test_noise_and_shades() -> None:
    assert abs(fakes("uniform noise").mean() - 127.5) < 1
    assert 50 < fakes("Gaussian noise").std() < 64  # cut at both ends
    assert fakes("dim noise").max() == 47
    assert fakes("bright noise").min() == 208
    shades = fakes("one shade")
    np.testing.assert_array_equal(shades.min(axis=(1, 2)), shades.max(axis=(1, 2)))


def test_real_images_turned() -> None:
    turned = fakes("upside down")
    np.testing.assert_array_equal(turned[:, ::-1], picked("upside down", turned))
    turned = fakes("rotated by 90°")
    before = picked("rotated by 90°", turned)
    left = (np.rot90(before, 1, (1, 2)) == turned).all(axis=(1, 2))
    right = (np.rot90(before, -1, (1, 2)) == turned).all(axis=(1, 2))
    assert (left ^ right).all()
    assert 30 < left.sum() < 70
    np.testing.assert_array_equal(picked("inverted", 255 - fakes("inverted")), 255 - fakes("inverted"))


def test_real_images_taken_apart() -> None:
    for family in ("permuted pixels", "jigsaw"):
        fake = fakes(family)
        assert (fake != picked(family, fake)).mean() > 0.3
    pieces = fakes("jigsaw").reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(100, 16, 49)
    before = picked("jigsaw", fakes("jigsaw")).reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(100, 16, 49)
    for fake, real in zip(pieces, before, strict=True):
        assert sorted(map(bytes, fake)) == sorted(map(bytes, real))
    for image in fakes("pixelated"):
        assert any(
            all((np.ptp(image[top : top + size, left : left + size]) == 0) for top in places for left in places)
            for size, places in ((size, range(0, 28, size)) for size in (3, 4, 5))
        )


def test_two_garments_in_one_image() -> None:
    columns = {image[:, :14].tobytes() for image in REAL}, {image[:, 14:].tobytes() for image in REAL}
    for image in fakes("cut and mixed"):
        assert image[:, :14].tobytes() in columns[0]
        assert image[:, 14:].tobytes() in columns[1]
    for image in fakes("overlaid"):
        below = (image >= REAL).all(axis=(1, 2)).sum()
        assert below >= 2


def test_packaged_pictures() -> None:
    textures = fakes("photo textures")
    assert textures.std(axis=(1, 2)).mean() > 5  # some are a piece of sky
    digits = fakes("digits")
    assert (digits[:, :2] == 0).all()
    assert (digits.max(axis=(1, 2)) > 200).all()
