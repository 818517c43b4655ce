"""The training images, read part by part and handed on window by window, so that they may be more than memory holds.

The parts that are read first stay in memory, up to a bound; those beyond it are read from the store in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from fmnist_tasks.data.declaration import SIDE

Chunk = tuple[np.ndarray, np.ndarray]  # images uint8 (n, 28, 28) and labels uint8 (n,)
Source = Callable[[], Iterator[Chunk]]  # reads a part from its beginning, a chunk at a time

_WINDOW = 100_000  # images that are shuffled together
_ROOM = 500_000  # images that stay in memory


class Training:
    """Images to train on in parts: how many each has, and how to read it."""

    def __init__(self, parts: Sequence[tuple[int, Source]], window: int = _WINDOW, room: int = _ROOM) -> None:
        self._counts, self._sources = [count for count, _ in parts], [source for _, source in parts]
        self._window, self._room = window, room
        self._kept: dict[int, list[Chunk]] = {}

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray) -> Training:
        """Those of two arrays."""
        return cls([(len(labels), lambda: iter([(images, labels)]))])

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def sizes(self) -> list[int]:
        """How many images each window has: as few windows as can be, equally large."""
        windows = -(-len(self) // self._window)
        return [len(self) * (number + 1) // windows - len(self) * number // windows for number in range(windows)]

    def windows(self, seed: int, epoch: int) -> Iterator[Chunk]:
        """All images once; if they take several windows, the parts in an order that follows from seed and epoch."""
        order = np.arange(len(self._sources))
        if len(self.sizes) > 1:
            np.random.default_rng((seed, epoch)).shuffle(order)
        chunks = chain.from_iterable(self._read(int(number)) for number in order)
        images, labels = _empty(0)
        for size in self.sizes:
            window, filled = _empty(size), 0
            while filled < size:
                if not len(labels):
                    images, labels = next(chunks)
                taken = slice(filled, filled := min(size, filled + len(labels)))
                count = filled - taken.start
                window[0][taken], window[1][taken] = images[:count], labels[:count]
                images, labels = images[count:], labels[count:]
            yield window

    def images(self, places: np.ndarray) -> np.ndarray:
        """The images at these places (n,), counted through the parts as they were given; uint8 (n, 28, 28)."""
        order, (found, _), first = np.argsort(places), _empty(len(places)), 0
        for images, _ in chain.from_iterable(self._read(number) for number in range(len(self._sources))):
            here = order[slice(*np.searchsorted(places[order], (first, first + len(images))))]
            found[here] = images[places[here] - first]
            first += len(images)
        return found

    def _read(self, number: int) -> Iterator[Chunk]:
        if number not in self._kept:
            if self._counts[number] > self._room:
                return self._sources[number]()
            self._room -= self._counts[number]
            self._kept[number] = list(self._sources[number]())
        return iter(self._kept[number])


def _empty(count: int) -> Chunk:
    return np.empty((count, SIDE, SIDE), np.uint8), np.empty(count, np.uint8)
