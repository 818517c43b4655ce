"""The object store: a few operations on keys, whatever stands behind them.

Keys are relative paths of printable characters (`releases/<version>/model.h5`). A name that others gave their file may
be none: in its key, bytes that are no printable UTF-8, backslashes and `%` are percent-encoded (`a%0Ab`), so that each
name has one key and each key one name. Writes are atomic: a reader sees the old object, the new one or none, never a
part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from fmnist_tasks.errors import IntegrityError, SettingsError, StoreError

if TYPE_CHECKING:
    from fmnist_tasks.registry.signing import Keys

T = TypeVar("T")
R = TypeVar("R")

MAX_DOCUMENT_BYTES = 64 << 20  # bytes of what is read without knowing its size
FILE = "file"
UNREADABLE = "unreadable"
_CLOCK_KEY = "clock.txt"
_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True)
class Stat:
    """One stored object: its key, its size in bytes and when it was last written."""

    key: str
    bytes: int
    modified: datetime  # UTC, by the store's clock; of a file in a folder, whatever its writer says
    version: str = ""  # another one after any change of the object
    changed: datetime | None = None  # UTC, by the file system's clock; None where writes are atomic
    kind: str = FILE  # or what stands there instead and is not read: "symbolic link", "pipe", "unreadable folder", …


class Store(Protocol):
    """What every store can do. Each method raises :class:`~fmnist_tasks.errors.StoreError` when it cannot just now."""

    keys: Keys  # with which this process signs and checks the store's documents

    def get(self, key: str, at_most: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Bytes of an object; raises :class:`~fmnist_tasks.errors.MissingError` if there is none.

        Raises :class:`~fmnist_tasks.errors.IntegrityError` if it has more than `at_most` bytes, before it is in memory.
        """

    def open(self, key: str, at_most: int | None = None) -> BinaryIO:
        """A large object as a seekable file, not held in memory; the caller closes it. Raises like `get`."""

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, replacing what was there; a file is read from its start and stays open."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free; False, and nothing written, if it is taken.

        It may be taken by this very call, if an answer was lost on the way: whoever must know puts an id into the data.
        """

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Objects whose name begins with the prefix and comes after `after`, in the order of their names.

        Raises :class:`~fmnist_tasks.errors.SettingsError` for a prefix that leaves the store. Includes what is no file
        (see `Stat.kind`), and leaves out the empty objects `folder/` with which S3 consoles mark folders.
        """

    def stat(self, key: str) -> Stat | None:
        """Size and time of an object, or None if there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""

    def take(self, seen: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Remove an object, or move it to the key `to`, but only as it was seen; False, and it stays, if it changed.

        With `sha256`, its content must have that digest too. True if it is gone: an interrupted call may have taken it,
        and the next one completes that.
        """

    def location(self, key: str) -> str:
        """Where a person finds the object: a path or an address without credentials."""


def read_clock(store: Store) -> datetime:
    """The time now by the store's own clock (UTC), which is the same for every machine: that of a fresh write."""
    store.put(_CLOCK_KEY, b"Written again and again, to learn the time by the store's clock.\n")
    stat = store.stat(_CLOCK_KEY)
    if stat is None:
        raise StoreError(f"{store.location(_CLOCK_KEY)} was deleted while it was written; clear the task")
    return stat.modified


def require_answer(store: Store) -> None:
    """Raise what the store raises if it does not answer as a whole: otherwise an error was that of one object."""
    read_clock(store)


def is_ahead(moment: datetime, now: datetime) -> bool:
    """Whether a time that was noted cannot be true: the clock was ahead of the present one when it was.

    A few minutes are allowed, by which the clocks of machines and of file systems may differ.
    """
    return moment - now > _CLOCKS_DIFFER


def check_size(key: str, size: int, at_most: int | None) -> None:
    """Raise :class:`IntegrityError` for an object that has more bytes than are expected of it."""
    if at_most is not None and size > at_most:
        raise IntegrityError(
            f"{key}: is {size:,} bytes, expected at most {at_most:,}, and was not read; restore it, or delete it and "
            "clear the task that wrote it"
        )


def side_by_side(read: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What `read` gives for each item, in their order; raises what it raised for the first that failed.

    A store across a network answers several at once in the time of one.
    """
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(read, items))


def encode_name(name: bytes) -> str:
    """The key of a name as it is in a file system or on a server."""
    return "".join(
        character
        if character.isprintable() and character not in "%\\"
        else "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))
        for character in name.decode(errors="surrogateescape")
    )


def decode_key(key: str) -> bytes:
    """The name that a key, or the beginning of one, stands for."""
    return unquote_to_bytes(key)


def check_key(
    key: str, encode: Callable[[bytes], str] = encode_name, decode: Callable[[str], bytes] = decode_key
) -> str:
    """Return the key; raises :class:`SettingsError` if it could leave the store or not be written everywhere."""
    valid = key.isprintable() and not any(part in {"", ".", ".."} for part in key.split("/")) and "%00" not in key
    if not valid or encode(decode(key)) != key:
        raise SettingsError(
            f"{key!r} is no valid key: use printable names joined by /, none of them . or .., and %XX for other bytes"
        )
    return key


def decode_prefix(prefix: str) -> bytes:
    """What the names begin with; raises :class:`SettingsError` if that leads out of the store."""
    name = decode_key(prefix)
    *folders, last = name.split(b"/")
    if any(part in {b"", b".", b".."} for part in folders) or last in {b".", b".."} or b"\0" in name:
        raise SettingsError(f"{prefix!r} leads out of the store; use names joined by /, none of them empty, . or ..")
    return name


def open_store(uri: str) -> Store:
    """The store that a URI names, with the keys of this process; nothing is read from it or written to it yet.

    Raises :class:`SettingsError`.
    """
    from fmnist_tasks.registry.keys import read_keys

    store = _find_store(uri)
    store.keys = read_keys()
    return store


def _find_store(uri: str) -> Store:
    if uri[:5].lower() == "s3://":
        from fmnist_tasks.registry.access import reach
        from fmnist_tasks.registry.s3 import S3Store

        return S3Store(reach(uri))
    if found := re.fullmatch(r"(?i)file:(?://|(?!//))(/[^?#]+)", uri):
        from fmnist_tasks.registry.local import FolderStore

        path = os.fsdecode(unquote_to_bytes(found[1]))
        if not path.startswith("/~") and "\0" not in path:
            return FolderStore(Path(path))
    raise SettingsError(
        "FMNIST_STORE names no store; use file:///folder, with the whole path (no ~, and % ? # as %25 %3F %23), or "
        "s3://bucket?endpoint=https://host:port, without credentials"
    )
