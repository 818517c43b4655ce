"""The object store: the protocol that a folder and S3 implement, and its keys.

A key is a relative path of printable characters (`releases/<version>/model.h5`). Files from elsewhere may have any
name: in their keys, bytes that are not printable UTF-8, backslashes and `%` are percent-encoded (`a%0Ab`). So each name
has one key, and each key one name. Writes are atomic: a reader gets the old object, the new one or none, never a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from fmnist_tasks.errors import READ_ERRORS, IntegrityError, SettingsError, StoreError

if TYPE_CHECKING:
    from fmnist_tasks.registry.signing import Keys

T = TypeVar("T")
R = TypeVar("R")

DATASETS = "datasets/"  # below it, each dataset but the default one has its own store
DEFAULT_MAX_BYTES = 64 << 20  # of an object whose size is not known before it is read
FILE = "file"
UNREADABLE = "unreadable"
_CLOCK_KEY = "clock.txt"
_MAX_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Stat:
    """One stored object: its key, its size in bytes and when it was last written."""

    key: str
    bytes: int
    modified: datetime  # UTC, by the store's clock; in a folder, the writer of a file can set it
    version: str = ""  # differs after any change of the object
    changed: datetime | None = None  # UTC, by the file system's clock; None if all writes are atomic
    kind: str = FILE  # others cannot be read: "symbolic link", "pipe", "unreadable folder", …


class Store(Protocol):
    """What every store can do; all methods raise :class:`~fmnist_tasks.errors.StoreError` if it is unavailable."""

    keys: Keys  # with which this process signs and verifies the store's documents
    dataset: str  # to which this part of a store belongs; empty: the default dataset, which has the whole store

    def __hash__(self) -> int:
        """By identity: what is read from a store may be cached."""

    def get(self, key: str, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Return the bytes of an object; raises :class:`~fmnist_tasks.errors.MissingError` if it does not exist.

        Raises :class:`~fmnist_tasks.errors.IntegrityError` for more than `max_bytes`, before they are in memory.
        """

    def open(self, key: str, max_bytes: int | None = None) -> BinaryIO:
        """Return a large object as a seekable file, not in memory; the caller closes it. Raises like `get`."""

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, or replace it; a file is read from its start and stays open."""

    def put_if_absent(self, key: str, data: bytes | BinaryIO) -> bool:
        """Write an object only if the key is free; return False if the key is taken, and write nothing.

        If a response is lost, the repeated request finds the key taken by the first one. A caller that must recognise
        its own write puts an ID into the data.
        """

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Yield the objects whose names start with the prefix and come after `after`, in the order of their names.

        Includes objects that are not files (see `Stat.kind`), but not the empty objects `folder/` with which S3
        consoles mark folders. Raises :class:`~fmnist_tasks.errors.SettingsError` for a prefix outside the store.
        """

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object, or None if it does not exist."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def remove_if_unchanged(self, stat: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Delete an object, or move it to the key `to`, if it has not changed since the stat.

        With `sha256`, its content must also have that digest. Returns False, and leaves the object, if it has changed.
        Returns True if the object no longer exists: after an interruption, repeat the call to complete it.
        """

    def location(self, key: str) -> str:
        """Return where a user finds the object: a path, or an address without credentials."""


def read_clock(store: Store) -> datetime:
    """Return the present time by the store's clock (UTC), which all machines share: the time of a new write."""
    store.put(_CLOCK_KEY, b"This object is written to read the time by the store's clock.\n")
    stat = store.stat(_CLOCK_KEY)
    if stat is None:
        raise StoreError(f"{store.location(_CLOCK_KEY)} was deleted while it was in use; clear the task")
    return stat.modified


def require_response(store: Store) -> None:
    """Raise the store's error if it does not respond at all; otherwise an earlier error was about one object only."""
    read_clock(store)


def is_ahead(moment: datetime, now: datetime) -> bool:
    """Return whether a recorded time is in the future, so that the clock that it came from was wrong.

    Allows five minutes of skew between the clocks of machines and file systems.
    """
    return moment - now > _MAX_CLOCK_SKEW


def require_max_size(key: str, size: int, max_bytes: int | None) -> None:
    """Raise :class:`IntegrityError` for an object of more than `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise IntegrityError(
            f"{key} has {size:,} bytes, expected at most {max_bytes:,}, so it was not read; restore it from a backup, "
            "or delete it and clear the task that wrote it"
        )


def map_parallel(read: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `read` of each item, in order; raises the error of the first item that failed.

    Eight items are read at the same time, since a store in the network responds to several requests in the time of one.
    """
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(read, items))


def map_readable(read: Callable[[T], R], items: Iterable[T]) -> tuple[list[R], list[Exception]]:
    """Return `read` of each item that can be read, in order, and the errors of the others; see :func:`map_parallel`."""

    def read_or_catch(item: T) -> tuple[list[R], list[Exception]]:
        try:
            return [read(item)], []
        except READ_ERRORS as error:
            return [], [error]

    results = map_parallel(read_or_catch, items)
    return [value for values, _ in results for value in values], [error for _, errors in results for error in errors]


def encode_name(name: bytes) -> str:
    """Return the key of a name in a file system or on a server."""
    return "".join(
        character
        if character.isprintable() and character not in "%\\"
        else "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))
        for character in name.decode(errors="surrogateescape")
    )


def decode_key(key: str) -> bytes:
    """Return the name of a key, or of the start of one."""
    return unquote_to_bytes(key)


def require_valid_key(
    key: str, encode: Callable[[bytes], str] = encode_name, decode: Callable[[str], bytes] = decode_key
) -> str:
    """Return the key; raises :class:`SettingsError` if it leads out of the store, or is not portable."""
    valid = key.isprintable() and not any(part in {"", ".", ".."} for part in key.split("/")) and "%00" not in key
    if not valid or encode(decode(key)) != key:
        raise SettingsError(
            f"{key!r} is not a valid key: use printable names other than . and .., joined by /, and %XX for other bytes"
        )
    return key


def decode_prefix(prefix: str) -> bytes:
    """Return the start of the names with this prefix; raises :class:`SettingsError` if it leads out of the store."""
    name = decode_key(prefix)
    *folders, last = name.split(b"/")
    if any(part in {b"", b".", b".."} for part in folders) or last in {b".", b".."} or b"\0" in name:
        raise SettingsError(f"{prefix!r} leads out of the store; use names joined by /, none of them empty, . or ..")
    return name
