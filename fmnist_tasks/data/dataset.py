"""The dataset: labelled parts kept as blobs, a fingerprint over them, and the split into training and validation.

A part is JSON: `{"split": "train" | "test", "source", "images": count, "blob": reference}`; a dataset is
`{"name", "classes", "parts", "fingerprint"}`: the two base parts, training and test, then batches, which are further
parts of the training split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np

from fmnist_tasks.data.npz import unpack
from fmnist_tasks.data.shards import Chunk, Training
from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.blobs import open_verified, put_blob
from fmnist_tasks.registry.documents import digest_of
from fmnist_tasks.registry.store import Store

Part = dict[str, Any]
Dataset = dict[str, Any]

VALIDATION_SHARE = 0.2
# The split does not follow the seed of a run: the validation images of all releases are the same, so that their
# figures compare, and no release is judged on images that an earlier one was trained on.
SPLIT_SEED = 0
_CHUNK = 10_000  # images that are read at once


@dataclass(frozen=True)
class Arrays:
    """A dataset to work with. Images are uint8 (N, 28, 28), labels uint8 (N,); those to train on may be any number."""

    training: Training
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@contextmanager
def packed(**arrays: np.ndarray) -> Iterator[BinaryIO]:
    """The arrays as a temporary, uncompressed .npz; the same arrays give the same bytes."""
    with TemporaryFile() as file:
        np.savez(file, allow_pickle=False, **arrays)
        yield file


def make_part(store: Store, split: str, source: str, images: np.ndarray, labels: np.ndarray) -> Part:
    """Keep the arrays as a blob and describe them; raises :class:`DataError` unless each image has one label."""
    if images.ndim == 0 or labels.ndim != 1 or len(images) != len(labels):
        found = f"{len(images) if images.ndim else 0:,} images but {labels.size:,} labels"
        raise DataError(f"{source}, {split} split: {found} (shapes {images.shape} and {labels.shape})")
    with packed(images=np.ascontiguousarray(images), labels=labels) as file:  # row by row, as `chunks` reads them
        return {"split": split, "source": source, "images": len(images), "blob": put_blob(store, file)}


def make_dataset(name: str, classes: Sequence[str], base: list[Part], batches: Iterable[Part]) -> Dataset:
    """The dataset of the base parts and the batches; content that comes twice counts once.

    The fingerprint covers classes and content, not where a part came from, nor in which order batches arrived.
    """
    known = {part["blob"]["sha256"] for part in base}
    new = {part["blob"]["sha256"]: part for part in batches if part["blob"]["sha256"] not in known}
    parts = [*base, *(new[sha256] for sha256 in sorted(new))]
    content = [name, list(classes), [[part["split"], part["blob"]["sha256"]] for part in parts]]
    return {"name": name, "classes": list(classes), "parts": parts, "fingerprint": digest_of(content)}


def load_part(store: Store, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a part, after its digest was checked."""
    with open_verified(store, part["blob"]) as file:
        images, labels = unpack(file, part["source"], "images", "labels")
    return images, labels


def load_test(store: Store, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the test split."""
    (part,) = (part for part in dataset["parts"] if part["split"] == "test")
    return load_part(store, part)


def load(store: Store, dataset: Dataset) -> Arrays:
    """All splits. Validation is a stratified fifth of the base training part; batches go to training alone."""
    base, *batches = [part for part in dataset["parts"] if part["split"] == "train"]
    training, validation = split(load_labels(store, base))
    images, labels = (np.concatenate(arrays) for arrays in zip(*chunks(store, base, validation), strict=True))
    sources = [(len(training), partial(chunks, store, base, training))]
    sources += [(part["images"], partial(chunks, store, part)) for part in batches]
    return Arrays(Training(sources), images, labels, *load_test(store, dataset))


def load_labels(store: Store, part: Part) -> np.ndarray:
    """Labels of a part, without its images."""
    with open_verified(store, part["blob"]) as file:
        (labels,) = unpack(file, part["source"], "labels")
    return labels


def chunks(store: Store, part: Part, rows: np.ndarray | None = None) -> Iterator[Chunk]:
    """Images and labels of a part in its order, some at a time; only those rows (sorted indices), if any are given."""
    with open_verified(store, part["blob"]) as file, np.load(file, allow_pickle=False) as content:
        labels = content["labels"].astype(np.uint8)
        chosen = np.zeros(len(labels), bool)
        chosen[slice(None) if rows is None else rows] = True
        with content.zip.open("images.npy") as images:
            np.lib.format.read_magic(images)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(images)
            if by_columns or dtype != np.uint8:
                raise IntegrityError(
                    f"{part['source']}: images of dtype {dtype} in {'columns' if by_columns else 'rows'}"
                )
            for first in range(0, len(labels), _CHUNK):
                here = slice(first, min(first + _CHUNK, len(labels)))
                size = (here.stop - first, *shape[1:])
                pixels = np.frombuffer(images.read(math.prod(size)), np.uint8).reshape(size)
                yield pixels[chosen[here]], labels[here][chosen[here]]


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation: a seeded permutation, stratified by class; each is sorted."""
    from sklearn.model_selection import train_test_split

    training, validation = train_test_split(
        np.arange(len(labels)), test_size=VALIDATION_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return np.sort(training), np.sort(validation)
