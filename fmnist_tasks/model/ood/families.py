"""OOD families: out-of-distribution images, generated from a seed, images of the dataset, and scikit-learn's pictures.

Each family is a function from images, uint8 (N, H, W) or (N, H, W, 3), and a random generator to as many OOD images of
the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from fmnist_tasks.data.colour import LUMINANCE
from fmnist_tasks.schemas.data import DatasetProperties

Family = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_REFERENCE_SIDE = 28  # of the images that margins and widths of strokes, in pixels, were chosen for


def _uniform(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, images.shape)


def _gaussian(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(random.normal(128, 64, images.shape), 0, 255)


def _dim(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 48, images.shape)


def _bright(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.integers(208, 256, images.shape)


def _one_shade(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(random.integers(0, 256, (len(images), 1, 1, *images.shape[3:])), images.shape)


def _permuted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = images.shape[1:3]
    order = random.permuted(np.tile(np.arange(height * width), (len(images), 1)), axis=1)
    pixels = images.reshape(len(images), height * width, *images.shape[3:])
    permuted: np.ndarray = pixels[np.arange(len(images))[:, None], order].reshape(images.shape)
    return permuted


def _inverted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return 255 - images


def _upside_down(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return images[:, ::-1]


def _rotated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rotated by 90 degrees, to the left or to the right; stretched to the same height and width."""
    left = random.random((len(images), *[1] * (images.ndim - 1))) < 0.5
    rotated = np.where(left, np.rot90(images, 1, (1, 2)), np.rot90(images, -1, (1, 2)))
    height, width = images.shape[1:3]
    rows, columns = (np.arange(to) * size // to for size, to in ((width, height), (height, width)))
    return rotated[:, rows[:, None], columns]


def _pixelated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Squares with a side of 3, 4 or 5 pixels, each in one shade."""
    output = np.empty(images.shape)
    height, width, *colours = images.shape[1:]
    sizes = random.choice([3, 4, 5], len(images))
    for size in (3, 4, 5):
        chosen, down, across = sizes == size, -(-height // size), -(-width // size)
        padding = ((0, 0), (0, down * size - height), (0, across * size - width), *[(0, 0)] * len(colours))
        padded = np.pad(images[chosen], padding)
        shades = padded.reshape(-1, down, size, across, size, *colours).mean(axis=(2, 4))
        output[chosen] = shades.repeat(size, axis=1).repeat(size, axis=2)[:, :height, :width]
    return output


def _jigsaw(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sixteen pieces in random order; rows and columns beyond a multiple of four stay where they are."""
    down, across, colours = images.shape[1] // 4, images.shape[2] // 4, images.shape[3:]
    output = images.copy()
    area = output[:, : 4 * down, : 4 * across]
    pieces = area.reshape(-1, 4, down, 4, across, *colours).swapaxes(2, 3).reshape(-1, 16, down, across, *colours)
    order = random.permuted(np.tile(np.arange(16), (len(images), 1)), axis=1)
    pieces = pieces[np.arange(len(images))[:, None], order]
    area[:] = pieces.reshape(-1, 4, 4, down, across, *colours).swapaxes(2, 3).reshape(area.shape)
    return output


def _scribbles(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Strokes between random points, light on black; every second image is pixelated."""
    count, strokes = len(images), random.integers(2, 6, len(images))
    height, width, *colours = images.shape[1:]
    scale = min(height, width) / _REFERENCE_SIDE
    margin, extent = 4 * scale, np.array([height, width])
    points = margin + (extent - 2 * margin) * random.random((count, 6, 2))
    distance = np.full((count, height * width), np.inf)  # from each pixel to the nearest stroke
    pixels = np.indices((height, width)).reshape(2, -1).T
    for number in range(5):
        start, end = points[:, number, None], points[:, number + 1, None]
        along = ((pixels - start) * (end - start)).sum(axis=-1) / ((end - start) ** 2).sum(axis=-1)
        nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
        to_stroke = np.linalg.norm(pixels - nearest, axis=-1)
        distance = np.where((number < strokes)[:, None], np.minimum(distance, to_stroke), distance)
    ink = np.clip(random.uniform(1.5, 3, (count, 1)) - distance / scale, 0, 1)
    shade = random.uniform(100, 255, (count, 1, *colours))
    drawings: np.ndarray = (ink.reshape(count, -1, *[1] * len(colours)) * shade).reshape(images.shape)
    drawings[::2] = _pixelated(drawings[::2], random)
    return drawings


def _textures(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Crops of two photographs, a temple and a flower."""
    photographs = load_sample_images().images
    if images.ndim == 3:
        photographs = [photograph @ np.array(LUMINANCE) for photograph in photographs]
    crops = []
    for number in range(len(images)):
        photograph = photographs[number % len(photographs)]
        height, width = images.shape[1:3]
        top, left = random.integers(0, len(photograph) - height), random.integers(0, photograph.shape[1] - width)
        crops.append(photograph[top : top + height, left : left + width])
    return np.stack(crops)


def _digits(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    digits = load_digits().images  # (1797, 8, 8) in 0..16
    digits = digits[random.integers(0, len(digits), len(images))]
    height, width, *colours = images.shape[1:]
    factor = min(height, width) // 8
    above, before = (height - 8 * factor) // 2, (width - 8 * factor) // 2
    shades = np.zeros((len(images), height, width))
    enlarged = digits.repeat(factor, axis=1).repeat(factor, axis=2)
    shades[:, above : above + 8 * factor, before : before + 8 * factor] = np.clip(enlarged * 16, 0, 255)
    return np.broadcast_to(shades.reshape(*shades.shape, *[1] * len(colours)), images.shape)


def _overlaid(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two images overlaid: the lighter of both pixels."""
    overlaid: np.ndarray = np.maximum(images, np.roll(images, 1, axis=0))
    return overlaid


def _mixed(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The left half of one image beside the right half of another."""
    width = images.shape[2]
    left = (np.arange(width) < width // 2).reshape(width, *[1] * (images.ndim - 3))
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
ROTATED_FAMILIES = ("upside down", "rotated by 90°")
EXTERNAL_FAMILIES = ("photo textures", "digits")  # made of images of scikit-learn
_COMPARED = 400  # images of a dataset and of a family
_FLAT, _MAX_FLAT = 4.0, 0.005  # standard deviation of the shades of a flat image, and share of such images
_MIN_TOLD_APART = 0.95  # share of these that a classifier recognises, unless the two resemble each other
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


def list_families(dataset: DatasetProperties) -> list[str]:
    """The families that are unlike the dataset: without those it excludes and, unless upright, without rotated ones."""
    excluded = {*dataset.excluded_families, *(() if dataset.image_format.upright else ROTATED_FAMILIES)}
    return [family for family in FAMILIES if family not in excluded]


def find_resembling_families(images: np.ndarray) -> list[str]:
    """Return the families that images (N, …), uint8, resemble: a detector of these would reject the dataset itself.

    Images resemble other people's (digits, photographs) if a quadratic classifier cannot tell the two apart, and images
    of one shade if some are almost that.
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:_COMPARED]
    resembling = []
    for family in EXTERNAL_FAMILIES:
        others = make_ood_images(family, images, len(chosen), seed=1)
        pixels = np.concatenate([images[chosen], others]).reshape(2 * len(chosen), -1).astype(np.float32)
        is_other = np.repeat([False, True], len(chosen))
        components = min(40, pixels.shape[1], len(chosen) // 4)
        classifier = make_pipeline(
            PCA(components, random_state=0), QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
        )
        if cross_val_score(classifier, pixels, is_other, cv=2).mean() < _MIN_TOLD_APART:
            resembling.append(family)
    spreads = images[chosen].reshape(len(chosen), -1).std(axis=1)
    if (spreads < _FLAT).mean() > _MAX_FLAT:
        resembling.append("one shade")
    return resembling


def make_ood_images(family: str, images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Generate up to `count` OOD images, uint8 (M, …), from images (N, …), uint8; M is at most N."""
    random = np.random.default_rng((seed, *family.encode()))
    picked = images[random.permutation(len(images))[:count]]
    return np.ascontiguousarray(FAMILIES[family](picked, random), dtype=np.uint8)
