"""Splits, fingerprints and stored arrays of a dataset."""

from __future__ import annotations

import io

import numpy as np
import pytest

from fmnist_tasks.data.dataset import (
    SPLIT_SEED,
    load_splits,
    load_test_split,
    make_dataset,
    pack_arrays,
    save_images,
    split_indices,
)
from fmnist_tasks.data.npz import read_npz
from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.schemas.data import ImageSet
from tests.support import synthetic

CLASSES = [f"pattern {i}" for i in range(synthetic.CLASSES)]


def make_base(store: FolderStore) -> list[ImageSet]:
    return [
        save_images(store, "train", "base", *synthetic.make_images(100, 1)),
        save_images(store, "test", "base", *synthetic.make_images(40, 1)),
    ]


def test_the_split_is_stratified_disjoint_complete_and_reproducible() -> None:
    labels = synthetic.make_images(1000, 1)[1]
    training, validation = split_indices(labels)
    assert len(validation) == 200
    np.testing.assert_array_equal(np.bincount(labels[validation]), np.full(10, 20))
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(1000))
    np.testing.assert_array_equal(split_indices(labels)[1], validation)
    assert SPLIT_SEED == 0  # another seed would train on validation images of earlier releases


def test_batches_join_only_the_training_split(store: FolderStore) -> None:
    base = make_base(store)
    images, labels = synthetic.make_images(30, 5)
    batch = save_images(store, "train", "incoming/b.npz", images, labels.astype(np.int64))
    without, arrays = (
        load_splits(store, make_dataset(synthetic.PROPERTIES, base, batches)) for batches in ([], [batch])
    )
    assert len(arrays.training) == len(without.training) + 30 == 110
    (window,) = arrays.training.iterate_windows(seed=0, epoch=0)
    np.testing.assert_array_equal(window[0][80:], images)
    np.testing.assert_array_equal(window[1][80:], labels)
    np.testing.assert_array_equal(arrays.validation_images, without.validation_images)
    np.testing.assert_array_equal(arrays.test_labels, without.test_labels)
    assert window[1].dtype == np.uint8


def test_the_fingerprint_depends_on_content_not_on_source(store: FolderStore) -> None:
    images, labels = synthetic.make_images(50, 1)
    original = make_dataset(synthetic.PROPERTIES, [save_images(store, "train", "here", images, labels)], [])
    moved = make_dataset(synthetic.PROPERTIES, [save_images(store, "train", "there", images, labels)], [])
    assert original.fingerprint == moved.fingerprint
    images[0, 0, 0] ^= 1
    changed = make_dataset(synthetic.PROPERTIES, [save_images(store, "train", "here", images, labels)], [])
    reversed_classes = synthetic.PROPERTIES.model_copy(update={"classes": synthetic.PROPERTIES.classes[::-1]})
    renamed = make_dataset(reversed_classes, original.image_sets, [])
    assert len({original.fingerprint, changed.fingerprint, renamed.fingerprint}) == 3


def test_batches_count_once_and_in_any_order(store: FolderStore) -> None:
    base = make_base(store)
    batch_2, batch_3 = (
        save_images(store, "train", f"batch {seed}", *synthetic.make_images(20, seed)) for seed in (2, 3)
    )
    first, second = (
        make_dataset(synthetic.PROPERTIES, base, batches)
        for batches in ([batch_2, batch_3], [batch_3, *base, batch_2, batch_3])
    )
    assert first == second
    assert (first.base, first.test) == tuple(base)
    assert sorted(batch.source for batch in first.batches) == ["batch 2", "batch 3"]


def test_packed_arrays_always_have_the_same_bytes() -> None:
    images, labels = synthetic.make_images(50, 1)
    with pack_arrays(images=images, labels=labels) as first, pack_arrays(images=images, labels=labels) as second:
        first.seek(0)
        second.seek(0)
        assert first.read() == second.read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an .npz file"),
        (b"\x80\x04pickle", "is not an .npz file"),
        (synthetic.encode_npz(images=np.zeros(3))[:-30], "is not an .npz file"),
        (
            synthetic.encode_npz(images=np.zeros(3)),
            "expected an .npz file with the arrays images and labels; it contains 'images', not labels",
        ),
        (
            synthetic.encode_npz(images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1)),
            "is not an .npz file with plain arrays",
        ),
    ],
)
def test_an_invalid_npz_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"batch.npz:? .*{message}"):
        read_npz(io.BytesIO(data), "batch.npz", "images", "labels")


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_changed_byte_in_a_stored_split_is_detected(store: FolderStore, split: str) -> None:
    dataset = make_dataset(synthetic.PROPERTIES, make_base(store), [])
    key = (dataset.base if split == "train" else dataset.test).blob.uri
    data = bytearray(store.get(key))
    data[5000] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=key):
        load_splits(store, dataset)
    if split == "test":
        with pytest.raises(IntegrityError, match=key):
            load_test_split(store, dataset)
