"""The embedded object store: a folder. Objects are files; writes go beside them and are moved or linked in place."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fmnist_tasks.errors import MissingError, StoreError
from fmnist_tasks.registry.store import Stat, check_key

_SCRATCH = ".scratch"  # half-written files; what a killed process left here is removed after a day
_SCRATCH_LIFETIME = 24 * 3600  # seconds


class FolderStore:
    """Objects as files below one folder, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> bytes:
        """Bytes of an object."""
        with self.open(key) as file, self._explained("read", key):
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """The object's own file, for reading."""
        with self._explained("read", key):
            try:
                return self._path(key).open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise MissingError(f"{self.location(key)} does not exist") from error

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, replacing what was there."""
        with self._explained("write", key), self._written(data) as scratch:
            self._make_room(key)
            scratch.replace(self._path(key))
            _flush_folder(self._path(key).parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free: a hard link is made or refused by the file system at once."""
        with self._explained("write", key), self._written(data) as scratch:
            self._make_room(key)
            try:
                os.link(scratch, self._path(key))
            except FileExistsError:
                return False
            _flush_folder(self._path(key).parent)
            return True

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Objects whose key begins with the prefix and comes after `after`, in the order of their keys."""
        with self._explained("list", prefix):
            folder = self.root / prefix.rpartition("/")[0]
            keys = sorted(
                path.relative_to(self.root).as_posix()
                for path in folder.rglob("*")
                if path.is_file() and not path.is_relative_to(self.root / _SCRATCH)
            )
            for key in keys:
                if key.startswith(prefix) and key > after and (stat := self.stat(key)):
                    yield stat

    def stat(self, key: str) -> Stat | None:
        """Size and time of an object, or None if there is none."""
        with self._explained("read", key):
            try:
                found = self._path(key).stat()
                return Stat(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        with self._explained("delete", key):
            self._path(key).unlink(missing_ok=True)

    def location(self, key: str) -> str:
        """Path of the object's file."""
        return str(self.root / key)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _make_room(self, key: str) -> None:
        self._path(key).parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _written(self, data: bytes | BinaryIO) -> Iterator[Path]:
        """A flushed file with the data, on the same file system; removed afterwards unless it was moved."""
        folder = self.root / _SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            with suppress(FileNotFoundError):  # another process may remove it first
                if time.time() - old.stat().st_mtime > _SCRATCH_LIFETIME:
                    old.unlink()
        descriptor, name = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data.seek(0)
                    shutil.copyfileobj(data, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {verb} {self.location(key)}: {error.strerror}; "
                f"free space, or give this user the right to {verb} below {self.root}, and clear the task"
            ) from error


def _flush_folder(folder: Path) -> None:
    """Make a rename or link in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
