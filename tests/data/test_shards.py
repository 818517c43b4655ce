"""Training images by windows: none lost or doubled, in an order that can be had again, no more at once than asked."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from fmnist_tasks.data.dataset import chunks, make_part
from fmnist_tasks.data.shards import Chunk, Training
from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Store
from tests.support import synthetic

COUNTS = (70, 1, 240, 33, 156)  # images of the parts


class Parts:
    """Made images in parts that are all different, and how often each part was read."""

    def __init__(self, *counts: int) -> None:
        images, labels = synthetic.make_images(sum(counts), 1)
        images[:, 0, 0], images[:, 0, 1] = np.arange(len(images)) % 256, np.arange(len(images)) // 256
        self.images, self.labels = images, labels
        ends = np.cumsum(counts)
        self.rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.read: Counter[int] = Counter()

    def training(self, **bounds: int) -> Training:
        sources = [
            (rows.stop - rows.start, lambda number=number: self.of(number)) for number, rows in enumerate(self.rows)
        ]
        return Training(sources, **bounds)

    def of(self, number: int) -> Iterator[Chunk]:
        self.read[number] += 1
        rows = self.rows[number]
        for first in range(rows.start, rows.stop, 50):
            here = slice(first, min(first + 50, rows.stop))
            yield self.images[here], self.labels[here]


def identities(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0].astype(int) + 256 * images[:, 0, 1].astype(int)).tolist()


@pytest.mark.parametrize("window", [1, 37, 100, 499])
def test_windows_have_every_image_once_in_an_order_of_seed_and_epoch(window: int) -> None:
    parts = Parts(*COUNTS)
    training = parts.training(window=window)
    orders = {}
    for key in ((0, 0), (0, 1), (1, 0)):
        windows = list(training.windows(*key))
        assert [len(labels) for _, labels in windows] == training.sizes
        assert max(training.sizes) <= window
        assert max(training.sizes) - min(training.sizes) <= 1
        images, labels = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        order = identities(images)
        assert sorted(order) == list(range(500))
        np.testing.assert_array_equal(labels, parts.labels[order])
        np.testing.assert_array_equal(images, parts.images[order])
        orders[key] = order
    assert len({tuple(order) for order in orders.values()}) == 3
    assert identities(np.concatenate([images for images, _ in training.windows(0, 0)])) == orders[0, 0]


def test_what_fits_into_one_window_comes_as_it_is() -> None:
    parts = Parts(*COUNTS)
    ((images, labels),) = parts.training(window=500).windows(3, 4)
    np.testing.assert_array_equal(images, parts.images)
    np.testing.assert_array_equal(labels, parts.labels)


def test_images_are_found_by_their_places() -> None:
    parts = Parts(*COUNTS)
    places = np.random.default_rng(0).permutation(500)[:123]
    np.testing.assert_array_equal(parts.training(window=50).images(places), parts.images[places])


def test_what_has_room_is_read_once_and_the_rest_in_every_epoch() -> None:
    parts = Parts(*COUNTS)
    training = parts.training(window=50, room=110)
    for epoch in range(3):
        for _ in training.windows(0, epoch):
            pass
    kept = {number for number, times in parts.read.items() if times == 1}
    assert 0 < sum(COUNTS[number] for number in kept) <= 110
    assert {parts.read[number] for number in set(range(5)) - kept} == {3}


def test_memory_is_bounded_by_window_and_room(store: FolderStore) -> None:
    """40,000 images are 31 MB; 2,000 at a time and 4,000 kept are 5."""
    parts = [make_part(store, "train", f"batch {seed}", *synthetic.make_images(2_000, seed)) for seed in range(20)]
    training = Training([(2_000, partial(chunks, store, part)) for part in parts], window=2_000, room=4_000)
    tracemalloc.start()
    try:
        seen = sum(len(labels) for _, labels in training.windows(0, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == len(training) == 40_000
    assert peak < 12 << 20


def test_a_part_is_read_in_chunks_and_only_the_rows_asked_for(
    store_of_each_kind: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmnist_tasks.data.dataset._CHUNK", 30)
    images, labels = synthetic.make_images(100, 1)
    part = make_part(store_of_each_kind, "train", "base", np.asfortranarray(images), labels.astype(np.int64))
    rows = np.array([0, 29, 30, 31, 99])
    found = list(chunks(store_of_each_kind, part, rows))
    assert [len(chunk[1]) for chunk in found] == [2, 2, 0, 1]
    np.testing.assert_array_equal(np.concatenate([chunk[0] for chunk in found]), images[rows])
    np.testing.assert_array_equal(np.concatenate([chunk[1] for chunk in found]), labels[rows])
    np.testing.assert_array_equal(np.concatenate([chunk[0] for chunk in chunks(store_of_each_kind, part)]), images)


def test_a_part_that_was_damaged_since_is_noticed_in_the_epoch_that_reads_it(store: FolderStore) -> None:
    part = make_part(store, "train", "base", *synthetic.make_images(100, 1))
    training = Training([(100, partial(chunks, store, part))], window=50, room=0)
    assert sum(len(labels) for _, labels in training.windows(0, 0)) == 100
    key = part["blob"]["uri"]
    data = bytearray(store.get(key))
    data[5000] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(IntegrityError, match=key):
        list(training.windows(0, 1))
