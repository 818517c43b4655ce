"""Families of images that are no clothing, made from seeds, from real images and from packaged pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from fmnist_tasks.data.declaration import SIDE

Family = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # real images (N, 28, 28) to as many fake ones

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def _uniform(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, real.shape)


def _gaussian(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(random.normal(128, 64, real.shape), 0, 255)


def _dim(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 48, real.shape)


def _bright(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(208, 256, real.shape)


def _one_shade(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(random.integers(0, 256, (len(real), 1, 1)), real.shape)


def _permuted(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.permuted(real.reshape(len(real), -1), axis=1).reshape(real.shape)


def _inverted(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 255 - real


def _upside_down(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return real[:, ::-1]


def _rotated(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By 90 degrees, to either side."""
    left = random.random((len(real), 1, 1)) < 0.5
    return np.where(left, np.rot90(real, 1, (1, 2)), np.rot90(real, -1, (1, 2)))


def _pixelated(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Squares of 3, 4 or 5 pixels that have one shade each."""
    made = np.empty(real.shape)
    sizes = random.choice([3, 4, 5], len(real))
    for size in (3, 4, 5):
        rows, squares = sizes == size, -(-SIDE // size)
        added = squares * size - SIDE
        padded = np.pad(real[rows], ((0, 0), (0, added), (0, added)))
        shades = padded.reshape(-1, squares, size, squares, size).mean(axis=(2, 4))
        made[rows] = np.kron(shades, np.ones((size, size)))[:, :SIDE, :SIDE]
    return made


def _jigsaw(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sixteen pieces in another order."""
    piece = SIDE // 4
    pieces = real.reshape(-1, 4, piece, 4, piece).swapaxes(2, 3).reshape(-1, 16, piece, piece)
    order = random.permuted(np.tile(np.arange(16), (len(real), 1)), axis=1)
    pieces = pieces[np.arange(len(real))[:, None], order]
    made: np.ndarray = pieces.reshape(-1, 4, 4, piece, piece).swapaxes(2, 3).reshape(real.shape)
    return made


def _scribbles(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Strokes from point to point, light on black, every other image by squares of one shade."""
    count, strokes = len(real), random.integers(2, 6, len(real))
    points = random.uniform(4, SIDE - 4, (count, 6, 2))
    distance = np.full((count, SIDE * SIDE), np.inf)  # from each pixel to the nearest stroke
    pixels = np.indices((SIDE, SIDE)).reshape(2, -1).T
    for number in range(5):
        begin, end = points[:, number, None], points[:, number + 1, None]
        along = ((pixels - begin) * (end - begin)).sum(axis=-1) / ((end - begin) ** 2).sum(axis=-1)
        nearest = begin + np.clip(along, 0, 1)[..., None] * (end - begin)
        here = np.linalg.norm(pixels - nearest, axis=-1)
        distance = np.where((number < strokes)[:, None], np.minimum(distance, here), distance)
    ink = np.clip(random.uniform(1.5, 3, (count, 1)) - distance, 0, 1) * random.uniform(100, 255, (count, 1))
    drawn: np.ndarray = ink.reshape(real.shape)
    drawn[::2] = _pixelated(drawn[::2], random)
    return drawn


def _textures(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pieces of two photographs, a temple and a flower, in grey."""
    photographs = [photograph @ np.array(_LUMINANCE) for photograph in load_sample_images().images]
    pieces = []
    for number in range(len(real)):
        photograph = photographs[number % len(photographs)]
        top, left = (random.integers(0, size - SIDE) for size in photograph.shape)
        pieces.append(photograph[top : top + SIDE, left : left + SIDE])
    return np.stack(pieces)


def _digits(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    digits = load_digits().images  # (1797, 8, 8) in 0..16
    digits = digits[random.integers(0, len(digits), len(real))]
    enlarged = np.pad(np.kron(digits, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))  # (N, 28, 28)
    shades: np.ndarray = np.clip(enlarged * 16, 0, 255)
    return shades


def _overlaid(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two garments, one over the other."""
    both: np.ndarray = np.maximum(real, np.roll(real, 1, axis=0))
    return both


def _mixed(real: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The left half of one garment beside the right half of another."""
    left = np.arange(SIDE) < SIDE // 2
    return np.where(left, real, np.roll(real, 1, axis=0))


# The model is shown these when it learns what is no clothing; the others it meets for the first time when it is judged.
SHOWN: dict[str, Family] = {
    "uniform noise": _uniform,
    "permuted pixels": _permuted,
    "inverted": _inverted,
    "upside down": _upside_down,
    "rotated by 90°": _rotated,
    "pixelated": _pixelated,
    "jigsaw": _jigsaw,
    "scribbles": _scribbles,
}
CLOSE = ("photo textures", "digits", "upside down", "rotated by 90°")  # to real images: some may pass
FAMILIES: dict[str, Family] = {
    **SHOWN,
    "Gaussian noise": _gaussian,
    "dim noise": _dim,
    "bright noise": _bright,
    "one shade": _one_shade,
    "photo textures": _textures,
    "digits": _digits,
    "overlaid": _overlaid,
    "cut and mixed": _mixed,
}


def fake_images(family: str, real: np.ndarray, count: int, seed: int) -> np.ndarray:
    """That many images of a family, uint8 (count, 28, 28), or as many as there are real ones, uint8 (N, 28, 28)."""
    random = np.random.default_rng((seed, *family.encode()))
    picked = real[random.permutation(len(real))[:count]]
    return np.ascontiguousarray(FAMILIES[family](picked, random), dtype=np.uint8)
