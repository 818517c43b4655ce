"""Arrays of images and labels in the layouts that people use, converted without loss to those of this project.

Images are uint8 (N, H, W) or (N, H, W, 3), labels are class indices (N,). An array that could be read in two ways, or
only with a loss, is refused with what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import normalize_class_name

# Usual names of the two arrays in an .npz, by split; None: no split. Compared in lower case.
_STEMS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
_INDEX = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.0+)?")  # pandas writes 3.0 if a label was missing elsewhere
_PAIRS = [
    ("images", "labels"),
    ("x", "y"),
    ("data", "labels"),
    ("data", "targets"),
    ("data", "target"),
    ("image", "label"),
]


def find_pairs(names: Sequence[str]) -> dict[str | None, tuple[str, str]]:
    """Return the names of images and labels among the arrays of a file, by split (None: the file has no splits).

    Examples: images/labels, x/y, x_train/y_train and x_test/y_test, train_images/train_labels. Empty if there are none.
    A pair without a split is the training split beside others. Raises :class:`DataError` if there are two of those.
    """
    by_lower = {name.lower(): name for name in names}
    pairs: dict[str | None, tuple[str, str]] = {}
    for split, stems in _STEMS.items():
        for stem in stems:
            for images, labels in _PAIRS:
                for pattern in ("{stem}_{name}", "{name}_{stem}", "{stem}{name}", "{name}{stem}"):
                    wanted = [pattern.format(stem=stem, name=name) for name in (images, labels)]
                    if all(name in by_lower for name in wanted):
                        pairs.setdefault(split, (by_lower[wanted[0]], by_lower[wanted[1]]))
    for images, labels in _PAIRS:
        if images in by_lower and labels in by_lower:
            pair = by_lower[images], by_lower[labels]
            if "train" in pairs:
                raise DataError(f"it has two training splits, {pair[0]} and {pairs['train'][0]}; leave one of them out")
            return {"train" if pairs else None: pair, **pairs}
    return pairs


def describe_fault(shape: tuple[int, ...], dtype: np.dtype, expected: tuple[int, ...]) -> str | None:
    """Return why an array with this shape and dtype is not images of the expected shape, (H, W) or (H, W, 3), if so."""
    height, width, *rest = expected
    channels = rest[0] if rest else 1
    if dtype.kind == "f":
        return (
            f"images are {dtype}; save the original pixels as uint8, 0 to 255, since the scale of floating-point "
            "pixels is not known (0 to 1, -1 to 1, standardised, …)"
        )
    if dtype.kind not in "iu":
        return f"images are {dtype}, expected uint8 (pixels 0 to 255)"
    if shape[1:] in _list_shapes(expected):
        return None
    if shape[1:] == (channels, height, width) and channels > 1:
        return f"images have the shape {shape}, with the channels first; save numpy.moveaxis(images, 1, -1)"
    if len(shape) == 4 and shape[:3] == (height, width, channels):
        return f"images have the shape {shape}, with the images last; save numpy.moveaxis(images, -1, 0)"
    if channels > 1 and shape[1:] == (math.prod(expected),):
        return (
            f"images have the shape {shape}; flat colour images may be ordered by pixel or by channel, so save them as "
            f"(N, {height}, {width}, {channels}) in an .npz file"
        )
    shapes = " or ".join(f"(N, {', '.join(map(str, accepted))})" for accepted in _list_shapes(expected))
    return f"images have the shape {shape}, expected {shapes}"


def _list_shapes(expected: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of one image that convert without loss: as expected, with a channel axis, and flat if grey.

    A flat colour image is ambiguous: its values may be ordered by pixel or by channel.
    """
    if len(expected) == 3:
        return [expected]
    return [expected, (*expected, 1), (math.prod(expected),)]


def infer_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one image, (H, W) or (H, W, 3), from that of an array; raises :class:`DataError`."""
    match shape:
        case (_, size) if math.isqrt(size) ** 2 == size:
            return (math.isqrt(size),) * 2
        case (_, height, width):
            return (height, width)
        case (_, height, width, 1):
            return (height, width)
        case (_, height, width, 3):
            return (height, width, 3)
        case (_, 1 | 3, _, _):
            raise DataError(
                f"images have the shape {shape}, with the channels first; save numpy.moveaxis(images, 1, -1)"
            )
        case (_, size):
            raise DataError(
                f"images have the shape {shape}, and {size} is not a square number, so their height and width are not "
                "known; save them as (N, H, W) or (N, H, W, 3)"
            )
    raise DataError(f"images have the shape {shape}, expected (N, H, W), (N, H, W, 3) or (N, H·W)")


def convert_images(images: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    """Return the images, uint8 (N, H, W) or (N, H, W, 3), C order; raises :class:`DataError` for other content."""
    if fault := describe_fault(images.shape, images.dtype, expected):
        raise DataError(fault)
    if images.dtype != np.uint8:
        if images.size and (images.min() < 0 or images.max() > 255):
            raise DataError(f"images have values from {images.min()} to {images.max()}, expected 0 to 255")
        images = images.astype(np.uint8)
    return np.ascontiguousarray(images.reshape(len(images), *expected))


def _are_other_numbers(classes: Sequence[str]) -> bool:
    """Return whether the names of the classes are numbers other than their indices."""
    return all(_INDEX.fullmatch(name) for name in classes) and list(classes) != [str(i) for i in range(len(classes))]


def require_unambiguous_indices(classes: Sequence[str]) -> None:
    """Raise :class:`DataError` if the names of the classes are numbers other than their indices.

    Then nothing shows whether a number in a file is an index or a name.
    """
    if _are_other_numbers(classes):
        raise DataError(
            f"labels are numbers, and so are the names of the classes ({', '.join(classes[:3])}, …), so a label could "
            "be an index or a name: save the labels as text, which is read as names"
        )


def convert_labels(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return class indices (N,), int64, from indices (N,) or (N, 1), one-hot rows (N, classes), or names of classes.

    Text that names no class may also be indices.

    Indices outside the classes are returned as they are: the data checks name their images. Raises :class:`DataError`
    for other content.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "iub":
        if labels.shape[1] != len(classes):
            raise DataError(f"labels have {labels.shape[1]} columns, but there are {len(classes)} classes")
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise DataError("labels have several columns, but not exactly one 1 in each row (one-hot)")
        positions: np.ndarray = labels.argmax(axis=1)
        return positions
    if labels.ndim != 1:
        raise DataError(f"labels have the shape {labels.shape}, expected (N,), (N, 1) or one-hot (N, {len(classes)})")
    if labels.dtype.kind in "SU":
        texts = np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels
        names = [normalize_class_name(text) for text in texts.tolist()]
        indices = {name: index for index, name in enumerate(classes)}
        if indices.keys().isdisjoint(names) and all(_NUMBER.fullmatch(name) for name in names):
            names = [name.partition(".")[0] for name in names]
            if indices.keys().isdisjoint(names) and not _are_other_numbers(classes):
                return np.array(names).astype(np.int64)
        if unknown := sorted(set(names) - indices.keys()):
            shown = ", ".join(repr(name[:40]) for name in unknown[:3])
            raise DataError(f"labels name unknown classes: {shown}; the classes are {', '.join(classes)}")
        return np.array([indices[name] for name in names], np.int64)
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels are {labels.dtype}, expected whole numbers (class indices, from 0) or class names")
    require_unambiguous_indices(classes)
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError("labels are larger than any class index")
    indices_of_classes: np.ndarray = labels.astype(np.int64)
    return indices_of_classes
