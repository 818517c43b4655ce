"""Windows of training images: each image once, in a reproducible order, within the limits of memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from fmnist_tasks.data.dataset import read_chunks, save_images
from fmnist_tasks.data.shards import Chunk, ShardedImages
from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Store
from tests.support import synthetic

COUNTS = (70, 1, 240, 33, 156)  # images of each shard


class Shards:
    """Distinct synthetic images in shards, and the number of times that each shard was read."""

    def __init__(self, *counts: int) -> None:
        images, labels = synthetic.make_images(sum(counts), 1)
        images[:, 0, 0], images[:, 0, 1] = np.arange(len(images)) % 256, np.arange(len(images)) // 256
        self.images, self.labels = images, labels
        ends = np.cumsum(counts)
        self.rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.reads: Counter[int] = Counter()

    def make_training_images(self, **limits: int) -> ShardedImages:
        shards = [
            (rows.stop - rows.start, lambda number=number: self.read(number)) for number, rows in enumerate(self.rows)
        ]
        return ShardedImages((28, 28), shards, **limits)

    def read(self, number: int) -> Iterator[Chunk]:
        self.reads[number] += 1
        shard = self.rows[number]
        for start in range(shard.start, shard.stop, 50):
            rows = slice(start, min(start + 50, shard.stop))
            yield self.images[rows], self.labels[rows]


def read_image_numbers(images: np.ndarray) -> list[int]:
    """Return the number of each image, which is stored in its first two pixels."""
    return (images[:, 0, 0].astype(int) + 256 * images[:, 0, 1].astype(int)).tolist()


@pytest.mark.parametrize("window_size", [1, 37, 100, 499])
def test_windows_have_every_image_once_in_an_order_by_seed_and_epoch(window_size: int) -> None:
    shards = Shards(*COUNTS)
    training = shards.make_training_images(window_size=window_size)
    orders = {}
    for key in ((0, 0), (0, 1), (1, 0)):
        windows = list(training.iterate_windows(*key))
        assert [len(labels) for _, labels in windows] == training.window_sizes
        assert max(training.window_sizes) <= window_size
        assert max(training.window_sizes) - min(training.window_sizes) <= 1
        images, labels = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        order = read_image_numbers(images)
        assert sorted(order) == list(range(500))
        np.testing.assert_array_equal(labels, shards.labels[order])
        np.testing.assert_array_equal(images, shards.images[order])
        orders[key] = order
    assert len({tuple(order) for order in orders.values()}) == 3
    assert read_image_numbers(np.concatenate([images for images, _ in training.iterate_windows(0, 0)])) == orders[0, 0]


def test_images_of_a_single_window_are_in_their_original_order() -> None:
    shards = Shards(*COUNTS)
    ((images, labels),) = shards.make_training_images(window_size=500).iterate_windows(3, 4)
    np.testing.assert_array_equal(images, shards.images)
    np.testing.assert_array_equal(labels, shards.labels)


def test_images_are_read_by_index() -> None:
    shards = Shards(*COUNTS)
    indices = np.random.default_rng(0).permutation(500)[:123]
    images = shards.make_training_images(window_size=50).read_images(indices)
    np.testing.assert_array_equal(images, shards.images[indices])


def test_shards_that_fit_into_the_cache_are_read_once() -> None:
    shards = Shards(*COUNTS)
    training = shards.make_training_images(window_size=50, max_cached=110)
    for epoch in range(3):
        for _ in training.iterate_windows(0, epoch):
            pass
    cached = {number for number, reads in shards.reads.items() if reads == 1}
    assert 0 < sum(COUNTS[number] for number in cached) <= 110
    assert {shards.reads[number] for number in set(range(5)) - cached} == {3}


def test_memory_is_bounded_by_window_and_cache(store: FolderStore) -> None:
    """All 40,000 images take 31 MB; a window of 2,000 and a cache of 4,000 take 5 MB."""
    batches = [save_images(store, "train", f"batch {seed}", *synthetic.make_images(2_000, seed)) for seed in range(20)]
    shards = [(2_000, partial(read_chunks, store, batch)) for batch in batches]
    training = ShardedImages((28, 28), shards, window_size=2_000, max_cached=4_000)
    tracemalloc.start()
    try:
        count = sum(len(labels) for _, labels in training.iterate_windows(0, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(training) == 40_000
    assert peak < 12 << 20


def test_an_image_set_is_read_in_chunks_and_only_the_selected_rows(
    store_of_each_kind: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist_tasks.data.dataset._CHUNK_SIZE", 30)
    images, labels = synthetic.make_images(100, 1)
    image_set = save_images(store_of_each_kind, "train", "base", np.asfortranarray(images), labels.astype(np.int64))
    rows = np.array([0, 29, 30, 31, 99])
    chunks = list(read_chunks(store_of_each_kind, image_set, rows))
    assert [len(chunk[1]) for chunk in chunks] == [2, 2, 0, 1]
    np.testing.assert_array_equal(np.concatenate([chunk[0] for chunk in chunks]), images[rows])
    np.testing.assert_array_equal(np.concatenate([chunk[1] for chunk in chunks]), labels[rows])
    all_images = np.concatenate([chunk[0] for chunk in read_chunks(store_of_each_kind, image_set)])
    np.testing.assert_array_equal(all_images, images)


def test_a_damaged_image_set_is_detected_in_the_epoch_that_reads_it(store: FolderStore) -> None:
    image_set = save_images(store, "train", "base", *synthetic.make_images(100, 1))
    training = ShardedImages((28, 28), [(100, partial(read_chunks, store, image_set))], window_size=50, max_cached=0)
    assert sum(len(labels) for _, labels in training.iterate_windows(0, 0)) == 100
    key = image_set.blob.uri
    data = bytearray(store.get(key))
    data[5000] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=key):
        list(training.iterate_windows(0, 1))
