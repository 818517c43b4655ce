"""The object store: six operations on keys, whatever stands behind them.

Keys are relative paths of printable characters (`releases/<version>/model.h5`). Writes are atomic: a reader sees the
old object, the new one or none, never a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from fmnist_tasks.errors import SettingsError


@dataclass(frozen=True)
class Stat:
    """One stored object: its key and its size in bytes."""

    key: str
    bytes: int


class Store(Protocol):
    """What every store can do. Each method raises :class:`~fmnist_tasks.errors.StoreError` when it cannot."""

    def get(self, key: str) -> bytes:
        """Bytes of an object; raises :class:`~fmnist_tasks.errors.MissingError` if there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free; False, and nothing written, if it is taken."""

    def list(self, prefix: str) -> Iterator[Stat]:
        """Objects whose key begins with the prefix, in the order of their keys."""

    def stat(self, key: str) -> Stat | None:
        """Size of an object, or None if there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""

    def location(self, key: str) -> str:
        """Where a person finds the object: a path or a URI without credentials."""


def check_key(key: str) -> str:
    """Return the key; raises :class:`SettingsError` if it could leave the store or not be written everywhere."""
    if not key.isprintable() or "\\" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise SettingsError(f"{key!r} is no valid key: use printable names joined by /, none of them . or ..")
    return key


def open_store(uri: str) -> Store:
    """The store that a URI names; nothing is read or written yet."""
    from fmnist_tasks.registry.local import FolderStore

    parts = urlsplit(uri)
    if parts.scheme == "file" and not parts.netloc and parts.path:
        return FolderStore(Path(unquote(parts.path)))
    raise SettingsError(f"FMNIST_STORE: {uri!r} names no store; use file:///folder")
