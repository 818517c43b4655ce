"""The part of a store that belongs to one dataset: the same protocol, with keys relative to `datasets/NAME/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from fmnist_tasks.registry.store import DATASETS, DEFAULT_MAX_BYTES, Stat, Store


class ScopedStore:
    """A store whose keys begin at a folder of another store; see :class:`~fmnist_tasks.registry.store.Store`."""

    def __init__(self, store: Store, dataset: str) -> None:
        self.dataset = dataset
        self._store = store
        self._folder = f"{DATASETS}{dataset}/"
        self.keys = store.keys.restrict(dataset)

    def get(self, key: str, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Return the bytes of an object."""
        return self._store.get(self._join(key), max_bytes)

    def open(self, key: str, max_bytes: int | None = None) -> BinaryIO:
        """Return a large object as a seekable file."""
        return self._store.open(self._join(key), max_bytes)

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, or replace it."""
        self._store.put(self._join(key), data)

    def put_if_absent(self, key: str, data: bytes | BinaryIO) -> bool:
        """Write an object only if the key is free; return False if it is taken."""
        return self._store.put_if_absent(self._join(key), data)

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Yield the objects whose names start with the prefix and come after `after`."""
        for stat in self._store.list(self._folder + prefix, self._folder + after if after else ""):
            yield replace(stat, key=stat.key.removeprefix(self._folder))

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object, or None if it does not exist."""
        stat = self._store.stat(self._join(key))
        return stat and replace(stat, key=key)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        self._store.delete(self._join(key))

    def remove_if_unchanged(self, stat: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Delete an object, or move it, if it has not changed since the stat."""
        whole = replace(stat, key=self._join(stat.key))
        return self._store.remove_if_unchanged(whole, self._join(to) if to else None, sha256)

    def location(self, key: str) -> str:
        """Return where a user finds the object."""
        return self._store.location(self._join(key))

    def _join(self, key: str) -> str:
        return self._folder + key  # the other store refuses a key that leads out of it
