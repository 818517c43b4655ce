"""OOD families: out-of-distribution images, generated from a seed, images of the dataset, and scikit-learn's pictures.

Each family is a function from images (N, H, W), uint8, and a random generator to as many OOD images (N, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from fmnist_tasks.data.declaration import SIDE

Family = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def _uniform(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, images.shape)


def _gaussian(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(random.normal(128, 64, images.shape), 0, 255)


def _dim(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 48, images.shape)


def _bright(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(208, 256, images.shape)


def _one_shade(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(random.integers(0, 256, (len(images), 1, 1)), images.shape)


def _permuted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


def _inverted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 255 - images


def _upside_down(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return images[:, ::-1]


def _rotated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rotated by 90 degrees, to the left or to the right."""
    left = random.random((len(images), 1, 1)) < 0.5
    return np.where(left, np.rot90(images, 1, (1, 2)), np.rot90(images, -1, (1, 2)))


def _pixelated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Squares with a side of 3, 4 or 5 pixels, each in one shade."""
    output = np.empty(images.shape)
    sizes = random.choice([3, 4, 5], len(images))
    for size in (3, 4, 5):
        rows, squares = sizes == size, -(-SIDE // size)
        padding = squares * size - SIDE
        padded = np.pad(images[rows], ((0, 0), (0, padding), (0, padding)))
        shades = padded.reshape(-1, squares, size, squares, size).mean(axis=(2, 4))
        output[rows] = np.kron(shades, np.ones((size, size)))[:, :SIDE, :SIDE]
    return output


def _jigsaw(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sixteen pieces in random order."""
    piece = SIDE // 4
    pieces = images.reshape(-1, 4, piece, 4, piece).swapaxes(2, 3).reshape(-1, 16, piece, piece)
    order = random.permuted(np.tile(np.arange(16), (len(images), 1)), axis=1)
    pieces = pieces[np.arange(len(images))[:, None], order]
    output: np.ndarray = pieces.reshape(-1, 4, 4, piece, piece).swapaxes(2, 3).reshape(images.shape)
    return output


def _scribbles(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Strokes between random points, light on black; every second image is pixelated."""
    count, strokes = len(images), random.integers(2, 6, len(images))
    points = random.uniform(4, SIDE - 4, (count, 6, 2))
    distance = np.full((count, SIDE * SIDE), np.inf)  # from each pixel to the nearest stroke
    pixels = np.indices((SIDE, SIDE)).reshape(2, -1).T
    for number in range(5):
        start, end = points[:, number, None], points[:, number + 1, None]
        along = ((pixels - start) * (end - start)).sum(axis=-1) / ((end - start) ** 2).sum(axis=-1)
        nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
        to_stroke = np.linalg.norm(pixels - nearest, axis=-1)
        distance = np.where((number < strokes)[:, None], np.minimum(distance, to_stroke), distance)
    ink = np.clip(random.uniform(1.5, 3, (count, 1)) - distance, 0, 1) * random.uniform(100, 255, (count, 1))
    drawings: np.ndarray = ink.reshape(images.shape)
    drawings[::2] = _pixelated(drawings[::2], random)
    return drawings


def _textures(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Crops of two photographs, a temple and a flower, in greyscale."""
    photographs = [photograph @ np.array(_LUMINANCE) for photograph in load_sample_images().images]
    crops = []
    for number in range(len(images)):
        photograph = photographs[number % len(photographs)]
        top, left = (random.integers(0, size - SIDE) for size in photograph.shape)
        crops.append(photograph[top : top + SIDE, left : left + SIDE])
    return np.stack(crops)


def _digits(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    digits = load_digits().images  # (1797, 8, 8) in 0..16
    digits = digits[random.integers(0, len(digits), len(images))]
    enlarged = np.pad(np.kron(digits, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))  # (N, 28, 28)
    shades: np.ndarray = np.clip(enlarged * 16, 0, 255)
    return shades


def _overlaid(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two images overlaid: the lighter of both pixels."""
    overlaid: np.ndarray = np.maximum(images, np.roll(images, 1, axis=0))
    return overlaid


def _mixed(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The left half of one image beside the right half of another."""
    left = np.arange(SIDE) < SIDE // 2
    return np.where(left, images, np.roll(images, 1, axis=0))


# The probe is fitted on these only.
TRAINING_FAMILIES: dict[str, Family] = {
    "uniform noise": _uniform,
    "permuted pixels": _permuted,
    "inverted": _inverted,
    "upside down": _upside_down,
    "rotated by 90°": _rotated,
    "pixelated": _pixelated,
    "jigsaw": _jigsaw,
    "scribbles": _scribbles,
}
# Near OOD: some of these images may be accepted, so more of them are evaluated.
NEAR_FAMILIES = ("photo textures", "digits", "upside down", "rotated by 90°")
FAMILIES: dict[str, Family] = {
    **TRAINING_FAMILIES,
    "Gaussian noise": _gaussian,
    "dim noise": _dim,
    "bright noise": _bright,
    "one shade": _one_shade,
    "photo textures": _textures,
    "digits": _digits,
    "overlaid": _overlaid,
    "cut and mixed": _mixed,
}


def make_ood_images(family: str, images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Generate up to `count` OOD images (M, H, W), uint8, from images (N, H, W), uint8; M is at most N."""
    random = np.random.default_rng((seed, *family.encode()))
    picked = images[random.permutation(len(images))[:count]]
    return np.ascontiguousarray(FAMILIES[family](picked, random), dtype=np.uint8)
