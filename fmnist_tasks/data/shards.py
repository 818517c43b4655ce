"""The training images in shards, read one at a time and shuffled in windows, so they need not fit into memory.

The first shards to be read stay in memory, up to a limit; the others are read from the store in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

Chunk = tuple[np.ndarray, np.ndarray]  # images uint8 (n, H, W) or (n, H, W, 3), and labels uint8 (n,)
ShardReader = Callable[[], Iterator[Chunk]]  # reads a shard from its beginning, one chunk at a time

_WINDOW_SIZE = 100_000  # images that are shuffled together
_MAX_CACHED_IMAGES = 500_000


class ShardedImages:
    """Training images of one shape, (H, W) or (H, W, 3), in shards, each with its number of images and a reader."""

    def __init__(
        self,
        shape: tuple[int, ...],
        shards: Sequence[tuple[int, ShardReader]],
        window_size: int = _WINDOW_SIZE,
        max_cached: int = _MAX_CACHED_IMAGES,
    ) -> None:
        self.shape = shape
        self._counts, self._readers = [count for count, _ in shards], [reader for _, reader in shards]
        self._window_size, self._free_cache = window_size, max_cached
        self._cache: dict[int, list[Chunk]] = {}

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> ShardedImages:
        """One shard of images (N, H, W) or (N, H, W, 3), and labels (N,)."""
        return cls(images.shape[1:], [(len(labels), lambda: iter([(images, labels)]))])

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def window_sizes(self) -> list[int]:
        """Number of images in each window: as few windows as possible, of equal size."""
        windows = -(-len(self) // self._window_size)
        return [len(self) * (number + 1) // windows - len(self) * number // windows for number in range(windows)]

    def iterate_windows(self, seed: int, epoch: int) -> Iterator[Chunk]:
        """Yield all images once, window by window; several windows have the shards in an order by seed and epoch."""
        order = np.arange(len(self._readers))
        if len(self.window_sizes) > 1:
            np.random.default_rng((seed, epoch)).shuffle(order)
        chunks = chain.from_iterable(self._read(int(number)) for number in order)
        images, labels = self._make_empty_chunk(0)
        for size in self.window_sizes:
            window, filled = self._make_empty_chunk(size), 0
            while filled < size:
                if not len(labels):
                    images, labels = next(chunks)
                rows = slice(filled, filled := min(size, filled + len(labels)))
                count = filled - rows.start
                window[0][rows], window[1][rows] = images[:count], labels[:count]
                images, labels = images[count:], labels[count:]
            yield window

    def read_images(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at the indices (n,), counted over the shards in their order; uint8 (n, …)."""
        order, (selected, _), start = np.argsort(indices), self._make_empty_chunk(len(indices)), 0
        for images, _ in chain.from_iterable(self._read(number) for number in range(len(self._readers))):
            rows = order[slice(*np.searchsorted(indices[order], (start, start + len(images))))]
            selected[rows] = images[indices[rows] - start]
            start += len(images)
        return selected

    def _read(self, number: int) -> Iterator[Chunk]:
        if number not in self._cache:
            if self._counts[number] > self._free_cache:
                return self._readers[number]()
            self._free_cache -= self._counts[number]
            self._cache[number] = list(self._readers[number]())
        return iter(self._cache[number])

    def _make_empty_chunk(self, count: int) -> Chunk:
        return np.empty((count, *self.shape), np.uint8), np.empty(count, np.uint8)
