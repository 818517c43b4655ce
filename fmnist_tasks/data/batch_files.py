"""The content of a batch: images and labels from one or more untrusted files, in the format of the dataset.

A batch is an `.npz`, `.csv` or `.parquet`, a pair of IDX files, or a zip file or folder with one folder of images for
each class. Arrays are converted only without loss. Images of other sizes or colour modes are converted as in "Try it",
and counted. An image that cannot be read is left out, with the reason.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO

import numpy as np

from fmnist_tasks.data.array_layouts import (
    convert_images,
    convert_labels,
    describe_fault,
    find_pairs,
    require_unambiguous_indices,
)
from fmnist_tasks.data.class_folders import EncodedImage, assign_classes, list_archive
from fmnist_tasks.data.csv_tables import read_csv
from fmnist_tasks.data.files import convert_errors, name_file_in_errors, read_file
from fmnist_tasks.data.idx import read_idx
from fmnist_tasks.data.image_files import MAX_BYTES as MAX_IMAGE_BYTES
from fmnist_tasks.data.image_files import UnreadableImageError, decode_image_file
from fmnist_tasks.data.npz import Header, list_arrays, read_npz
from fmnist_tasks.data.parquet_tables import read_parquet
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import MAX_CLASS_NAME, DatasetProperties

# Of a file, and of the pixels and labels of a batch. A worker with 6 GB has room for them, for the copy that is being
# stored, and for the checks.
MAX_BYTES = 1 << 30
MAX_REASONS = 20  # of unreadable images; a record has a limited size
_MAX_DECODED_PIXELS = 50_000_000_000  # of a batch: 4,000 pictures of 12 megapixels, ten minutes on one core
IMAGE_FILE = re.compile(r".+\.(png|jpe?g|jfif|webp|bmp|gif|tiff?|heic|heif)", re.IGNORECASE)
FORMATS = (
    "an .npz, .csv or .parquet, a pair of IDX files, or a zip file or folder with one folder of images for each class"
)


@dataclass(frozen=True)
class BatchContent:
    """Images, uint8 (N, H, W) or (N, H, W, 3), and class indices (N,), uint8 if all fit."""

    images: np.ndarray
    labels: np.ndarray
    converted: int = 0  # images that had another size or colour mode
    unreadable: int = 0  # images that were left out
    reasons: list[str] = field(default_factory=list)  # for the first of them


def read_files(contents: dict[str, BinaryIO], dataset: DatasetProperties) -> BatchContent:
    """Return the content of one file, or of a pair of IDX files, by key; raises :class:`DataError` if it is invalid."""
    with convert_errors(f"{next(iter(contents))} cannot be read"):  # whatever a reader has overlooked
        return _read_files(contents, dataset)


def _read_files(contents: dict[str, BinaryIO], dataset: DatasetProperties) -> BatchContent:
    for content in contents.values():
        content.seek(0)
    key, *others = contents
    name = key.lower()
    if others:
        images, labels = (read_idx(content, key, MAX_BYTES) for key, content in contents.items())
        return _convert_arrays(key, images, labels, dataset)
    if name.endswith(".npz"):
        return _convert_arrays(key, *_read_npz(contents[key], key, dataset), dataset)
    if name.endswith((".csv", ".csv.gz")):
        return _convert_arrays(key, *read_csv(contents[key], key, MAX_BYTES), dataset)
    if name.endswith(".zip"):
        return read_images(list_archive(contents[key], key), key, dataset)
    if name.endswith(".parquet"):
        return read_images(_name_indices(read_parquet(contents[key], key), key, dataset.classes), key, dataset)
    if IMAGE_FILE.fullmatch(key):
        raise DataError(f"{key} is an image without a class; put it into a folder with the name of its class")
    raise DataError(f"{key} is not a batch; submit {FORMATS}")


def read_folder(contents: dict[str, partial[BinaryIO]], dataset: DatasetProperties) -> BatchContent:
    """Return the content of a folder of images, by key a function that opens a file; raises like :func:`read_files`."""

    def read(key: str) -> bytes:
        with contents[key]() as file:
            return read_file(file, key, MAX_IMAGE_BYTES)

    name = next(iter(contents)).partition("/")[0]
    with convert_errors(f"{name} cannot be read"):
        return read_images(assign_classes({key: partial(read, key) for key in contents}, name), name, dataset)


def read_images(images: list[EncodedImage], name: str, dataset: DatasetProperties) -> BatchContent:
    """Decode image files, each with the name of its class."""
    image_format, indices = dataset.image_format, {label: index for index, label in enumerate(dataset.classes)}
    if any(image.split for image in images):
        raise DataError(
            f"{name} has folders for splits, such as test/; a batch extends only the training split, so submit only "
            "that, as CLASS/IMAGE"
        )
    if unknown := sorted({image.label for image in images} - indices.keys()):
        shown = ", ".join(repr(label[:40]) for label in unknown[:3])
        raise DataError(
            f"{name} has unknown classes: {shown}; the classes of {dataset.name} are {', '.join(dataset.classes)}"
        )
    if len(images) * image_format.pixels > MAX_BYTES:
        limit = MAX_BYTES // image_format.pixels
        raise DataError(f"{name} has {len(images):,} images; split it into files of at most {limit:,}")
    pixels = np.empty((len(images), *image_format.shape), np.uint8)
    labels = np.empty(len(images), np.uint8)
    count = converted = unreadable = decoded_pixels = 0
    reasons: list[str] = []
    for image in images:
        _require_few_pixels(name, decoded_pixels)
        try:
            decoded = decode_image_file(io.BytesIO(image.read()), image.name, image_format)
            decoded_pixels += math.prod(decoded.size)
        except DataError as error:
            unreadable += 1
            reasons += [str(error)] if len(reasons) < MAX_REASONS else []
            decoded_pixels += error.pixels if isinstance(error, UnreadableImageError) else 0
            continue
        converted += not decoded.has_format(image_format)
        pixels[count], labels[count] = decoded.pixels, indices[image.label]
        count += 1
    _require_few_pixels(name, decoded_pixels)
    if not count:
        raise DataError(f"{name}: none of its {len(images):,} images can be read, for example {reasons[0]}")
    return BatchContent(pixels[:count], labels[:count], converted, unreadable, reasons)


def _require_few_pixels(name: str, count: int) -> None:
    """Raise :class:`DataError` if the images so far, also those that could not be decoded, have too many pixels."""
    if count > _MAX_DECODED_PIXELS:
        raise DataError(
            f"{name}: its images have more than {_MAX_DECODED_PIXELS:,} pixels; make them smaller, or split the batch"
        )


def _name_indices(images: list[EncodedImage], name: str, classes: Sequence[str]) -> list[EncodedImage]:
    """Replace class indices by the names of the classes; raises :class:`DataError` if those are other numbers."""
    if not all(image.is_label_index for image in images):
        return images
    with name_file_in_errors(name):
        require_unambiguous_indices(classes)
    if any(int(image.label) >= len(classes) for image in images):
        return images  # which are refused as images of unknown classes
    return [replace(image, label=classes[int(image.label)]) for image in images]


def _read_npz(file: BinaryIO, name: str, dataset: DatasetProperties) -> tuple[np.ndarray, np.ndarray]:
    with name_file_in_errors(name):
        pairs = find_pairs(names := list_arrays(file, name))
    if not pairs:
        found = ", ".join(repr(array[:40]) for array in names[:5]) or "nothing"
        raise DataError(f"{name}: expected an .npz file with the arrays images and labels; it contains {found}")
    if not pairs.keys() <= {None, "train"}:
        raise DataError(
            f"{name} has arrays of a test or validation split; a batch extends only the training split, so save the "
            "file without them"
        )
    (arrays,) = pairs.values()
    images, labels = read_npz(file, name, *arrays, max_bytes=MAX_BYTES, check=partial(_require_format, name, dataset))
    return images, labels


def _require_format(name: str, dataset: DatasetProperties, images: Header, labels: Header) -> None:
    """Raise :class:`DataError` before arrays are read that are not images of the dataset with one label each."""
    problems = [describe_fault(images.shape, images.dtype, dataset.image_format.shape)]
    if labels.dtype.kind in "SU" and labels.dtype.itemsize > 4 * MAX_CLASS_NAME:
        problems.append(
            f"labels have up to {labels.dtype.itemsize:,} bytes; names of classes have {MAX_CLASS_NAME} characters"
        )
    if images.shape[:1] != labels.shape[:1]:
        problems.append(f"{_count(images.shape):,} images but {_count(labels.shape):,} labels")
    if not any(problems) and not images.shape[0]:
        problems.append("there are no images")
    if faults := [problem for problem in problems if problem]:
        raise DataError(f"{name}: {'; '.join(faults)}")


def _count(shape: Sequence[int]) -> int:
    return shape[0] if shape else 0


def _convert_arrays(name: str, images: np.ndarray, labels: np.ndarray, dataset: DatasetProperties) -> BatchContent:
    if images.shape[:1] != labels.shape[:1]:
        raise DataError(f"{name}: {_count(images.shape):,} images but {_count(labels.shape):,} labels")
    if not len(images):
        raise DataError(f"{name}: there are no images")
    with name_file_in_errors(name):
        pixels = convert_images(images, dataset.image_format.shape)
        indices = convert_labels(labels, dataset.classes)
    if indices.min() >= 0 and indices.max() <= 255:
        indices = indices.astype(np.uint8)
    return BatchContent(pixels, indices)
