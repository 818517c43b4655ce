from __future__ import annotations

import io

import numpy as np
import pytest

from fmnist_tasks.data.dataset import SPLIT_SEED, load, make_dataset, make_part, packed, split, unpack
from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.local import FolderStore
from tests.support import synthetic

CLASSES = [f"pattern {i}" for i in range(synthetic.CLASSES)]


def test_the_split_is_stratified_disjoint_complete_and_always_the_same() -> None:
    labels = synthetic.make_images(1000, 1)[1]
    training, validation = split(labels)
    assert len(validation) == 200
    np.testing.assert_array_equal(np.bincount(labels[validation]), np.full(10, 20))
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(1000))
    np.testing.assert_array_equal(split(labels)[1], validation)
    assert SPLIT_SEED == 0  # another seed would train on what earlier releases were judged by


def test_batches_join_training_and_nothing_else(store: FolderStore) -> None:
    base = [
        make_part(store, name, "base", *synthetic.make_images(count, 1))
        for name, count in (("train", 100), ("test", 40))
    ]
    images, labels = synthetic.make_images(30, 5)
    batch = make_part(store, "train", "incoming/b.npz", images, labels.astype(np.int64))
    without, arrays = (load(store, make_dataset("made", CLASSES, base, batches)) for batches in ([], [batch]))
    assert len(arrays.training) == len(without.training) + 30 == 110
    (window,) = arrays.training.windows(seed=0, epoch=0)
    np.testing.assert_array_equal(window[0][80:], images)
    np.testing.assert_array_equal(window[1][80:], labels)
    np.testing.assert_array_equal(arrays.validation_images, without.validation_images)
    np.testing.assert_array_equal(arrays.test_labels, without.test_labels)
    assert window[1].dtype == np.uint8


def test_the_fingerprint_follows_content_not_origin(store: FolderStore) -> None:
    images, labels = synthetic.make_images(50, 1)
    here = make_dataset("made", CLASSES, [make_part(store, "train", "here", images, labels)], [])
    there = make_dataset("made", CLASSES, [make_part(store, "train", "there", images, labels)], [])
    assert here["fingerprint"] == there["fingerprint"]
    images[0, 0, 0] ^= 1
    other = make_dataset("made", CLASSES, [make_part(store, "train", "here", images, labels)], [])
    renamed = make_dataset("made", CLASSES[::-1], here["parts"], [])
    assert len({here["fingerprint"], other["fingerprint"], renamed["fingerprint"]}) == 3


def test_batches_count_once_and_in_any_order(store: FolderStore) -> None:
    base = [make_part(store, "train", "base", *synthetic.make_images(100, 1))]
    one, two = (make_part(store, "train", f"batch {seed}", *synthetic.make_images(20, seed)) for seed in (2, 3))
    first, second = (make_dataset("made", CLASSES, base, batches) for batches in ([one, two], [two, *base, one, two]))
    assert first == second
    assert len(first["parts"]) == 3


def test_packing_gives_the_same_bytes_every_time() -> None:
    images, labels = synthetic.make_images(50, 1)
    with packed(images=images, labels=labels) as one, packed(images=images, labels=labels) as other:
        one.seek(0)
        other.seek(0)
        assert one.read() == other.read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no .npz"),
        (b"\x80\x04pickle", "is no .npz"),
        (synthetic.encode_npz(images=np.zeros(3))[:-30], "is no .npz"),
        (synthetic.encode_npz(images=np.zeros(3)), "arrays images and labels is expected"),
        (
            synthetic.encode_npz(images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1)),
            "is no .npz with plain arrays",
        ),
    ],
)
def test_what_is_no_plain_npz_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"batch.npz: .*{message}"):
        unpack(io.BytesIO(data), "batch.npz", "images", "labels")


def test_one_changed_byte_in_a_stored_part_is_noticed(store: FolderStore) -> None:
    part = make_part(store, "train", "base", *synthetic.make_images(100, 1))
    key = part["blob"]["uri"]
    data = bytearray(store.get(key))
    data[5000] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=key):
        load(store, make_dataset("made", CLASSES, [part, {**part, "split": "test"}], []))
