"""The dataset: images stored as blobs, a fingerprint of their content, and the split into training and validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from fmnist_tasks.data.npz import read_npz
from fmnist_tasks.data.shards import Chunk, ShardedImages
from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.blobs import open_verified, put_blob
from fmnist_tasks.registry.documents import compute_digest
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.data import Dataset, DatasetProperties, ImageSet, Split

VALIDATION_SHARE = 0.2
# Independent of a run's seed: all releases have the same validation images, so their metrics are comparable, and no
# release is evaluated on images that an earlier one was trained on.
SPLIT_SEED = 0
_MODEL_FIELDS = ("name", "classes", "image_format", "excluded_families")  # properties that affect the model
_CHUNK_SIZE = 10_000  # images that are read at once


@dataclass(frozen=True)
class Arrays:
    """A dataset: images uint8 (N, H, W) or (N, H, W, 3), labels uint8 (N,). Training may be larger than memory."""

    training: ShardedImages
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@contextmanager
def pack_arrays(**arrays: np.ndarray) -> Iterator[BinaryIO]:
    """Yield the arrays as a temporary, uncompressed .npz; the same arrays give the same bytes."""
    with TemporaryFile() as file:
        np.savez(file, allow_pickle=False, **arrays)
        yield file


def save_images(
    store: Store, split: Split, source: str, images: np.ndarray, labels: np.ndarray, keys: Sequence[str] = ()
) -> ImageSet:
    """Save the arrays as a blob and return its description; raises :class:`DataError` unless each image has a label."""
    if images.ndim == 0 or labels.ndim != 1 or len(images) != len(labels):
        counts = f"{len(images) if images.ndim else 0:,} images but {labels.size:,} labels"
        raise DataError(f"{source}, {split} split: {counts} (shapes {images.shape} and {labels.shape})")
    with pack_arrays(images=np.ascontiguousarray(images), labels=labels) as file:  # `read_chunks` needs C order
        return ImageSet(split=split, source=source, images=len(images), blob=put_blob(store, file), keys=list(keys))


def make_dataset(properties: DatasetProperties, base: list[ImageSet], batches: Iterable[ImageSet]) -> Dataset:
    """Return the dataset of the two base splits and the batches; repeated content counts once.

    The fingerprint covers content, and properties that affect the model; not texts, sources, or the order of batches.
    """
    known = {image_set.blob.sha256 for image_set in base}
    new = {batch.blob.sha256: batch for batch in batches if batch.images and batch.blob.sha256 not in known}
    image_sets = [*base, *(new[sha256] for sha256 in sorted(new))]
    fields = properties.model_dump(include=set(DatasetProperties.model_fields))
    content = [
        {name: fields[name] for name in _MODEL_FIELDS},
        [[image_set.split, image_set.blob.sha256] for image_set in image_sets],
    ]
    return Dataset(**fields, image_sets=image_sets, fingerprint=compute_digest(content))


def load_images(store: Store, image_set: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels, after verifying their digest."""
    with open_verified(store, image_set.blob) as file:
        images, labels = read_npz(file, image_set.source, "images", "labels")
    return images, labels


def load_test_split(store: Store, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the test split."""
    return load_images(store, dataset.test)


def load_validation_split(store: Store, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the validation split, a stratified fifth of the base training split."""
    _, validation = split_indices(load_labels(store, dataset.base))
    images, labels = (
        np.concatenate(arrays) for arrays in zip(*read_chunks(store, dataset.base, validation), strict=True)
    )
    return images, labels


def load_splits(store: Store, dataset: Dataset) -> Arrays:
    """Return all splits. Batches only extend training."""
    training, _ = split_indices(load_labels(store, dataset.base))
    images, labels = load_validation_split(store, dataset)
    shards = [(len(training), partial(read_chunks, store, dataset.base, training))]
    shards += [(batch.images, partial(read_chunks, store, batch)) for batch in dataset.batches]
    return Arrays(ShardedImages(dataset.image_format.shape, shards), images, labels, *load_test_split(store, dataset))


def load_labels(store: Store, image_set: ImageSet) -> np.ndarray:
    """Return the labels only."""
    with open_verified(store, image_set.blob) as file:
        (labels,) = read_npz(file, image_set.source, "labels")
    return labels


def read_chunks(store: Store, image_set: ImageSet, rows: np.ndarray | None = None) -> Iterator[Chunk]:
    """Yield images and labels in chunks, in their order; all of them, or only `rows` (sorted indices)."""
    with open_verified(store, image_set.blob) as file, np.load(file, allow_pickle=False) as content:
        labels = content["labels"].astype(np.uint8)
        is_selected = np.zeros(len(labels), bool)
        is_selected[slice(None) if rows is None else rows] = True
        with content.zip.open("images.npy") as images:
            np.lib.format.read_magic(images)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(images)
            if fortran_order or dtype != np.uint8:
                raise IntegrityError(
                    f"{image_set.source}: images have dtype {dtype} and {'Fortran' if fortran_order else 'C'} order, "
                    "expected uint8 and C order"
                )
            for start in range(0, len(labels), _CHUNK_SIZE):
                chunk = slice(start, min(start + _CHUNK_SIZE, len(labels)))
                size = (chunk.stop - start, *shape[1:])
                pixels = np.frombuffer(images.read(math.prod(size)), np.uint8).reshape(size)
                yield pixels[is_selected[chunk]], labels[chunk][is_selected[chunk]]


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted indices of training and validation: a seeded permutation, stratified by class."""
    from sklearn.model_selection import train_test_split

    training, validation = train_test_split(
        np.arange(len(labels)), test_size=VALIDATION_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return np.sort(training), np.sort(validation)
