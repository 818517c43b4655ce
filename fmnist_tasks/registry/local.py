"""The embedded object store: a folder. Objects are files; writes go beside them and are moved or linked in place.

Symbolic links below the folder are not followed, whoever made them: a batch that is a link to a file elsewhere would
bring that file into the store. The folder itself may be a link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat as modes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from fmnist_tasks.errors import AccessError, IntegrityError, MissingError, StoreError
from fmnist_tasks.registry.signing import NO_KEYS, Keys
from fmnist_tasks.registry.store import (
    FILE,
    MAX_DOCUMENT_BYTES,
    UNREADABLE,
    Stat,
    check_key,
    check_size,
    decode_key,
    decode_prefix,
    encode_name,
)

_SCRATCH = ".scratch"  # half-written files; what a killed process left here is removed after a day
_SCRATCH_LIFETIME = 24 * 3600  # seconds

_HELD = re.compile(r"(?<![^/])\.taken\.[0-9a-f]{16}\.(?=[^/]+$)")

_KINDS = {
    modes.S_IFREG: FILE,
    modes.S_IFDIR: "folder",
    modes.S_IFLNK: "symbolic link",
    modes.S_IFIFO: "pipe",
    modes.S_IFSOCK: "socket",
}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}  # no file can have that name here
# What another try cannot change: missing rights, a file system that is read-only or cannot hold the name.
_PERMANENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.EILSEQ, errno.ENAMETOOLONG}
_FAR_BACK, _FAR_AHEAD = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)  # can be added to
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FolderStore:
    """Objects as files below one folder, which is made by the first write."""

    def __init__(self, root: Path, keys: Keys = NO_KEYS) -> None:
        self.keys = keys
        self.root = root
        self._has_links = False  # whether the file system was seen to make hard links

    def get(self, key: str, at_most: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Bytes of an object."""
        with self.open(key, at_most) as file, self._explained("read", key):
            return file.read()

    def open(self, key: str, at_most: int | None = None) -> BinaryIO:
        """The object's own file, for reading."""
        with self._explained("read", key):
            try:  # without O_NONBLOCK, a pipe would be waited for
                descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in _ABSENT:
                    raise MissingError(f"{self.location(key)} does not exist") from error
                raise
            found = os.fstat(descriptor)
            kind = _kind(found)
            if kind == FILE:
                file = os.fdopen(descriptor, "rb")
                try:
                    check_size(key, found.st_size, at_most)
                except IntegrityError:
                    file.close()
                    raise
                return file
            os.close(descriptor)
            if kind == "folder":
                raise MissingError(f"{self.location(key)} does not exist")
            raise AccessError(f"{self.location(key)} is a {kind}, which is not read; put a file in its place")

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, replacing what was there."""
        with self._explained("write", key), self._written(data) as scratch:
            path = self._place(key)
            scratch.replace(path)
            _flush_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object only if the key is free: a hard link is made or refused by the file system at once."""
        with self._explained("write", key), self._written(data) as scratch:
            path = self._place(key)
            try:
                os.link(scratch, path)
            except FileExistsError:
                return False
            _flush_folder(path.parent)
            return True

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Objects whose name begins with the prefix and comes after `after`, in the order of their names."""
        beginning, passed = decode_prefix(prefix), decode_key(after)
        top = beginning[: beginning.rfind(b"/") + 1]
        with self._explained("list", prefix):
            self._refuse_links(self._file(top + b"-"))
            try:
                folders = [iter(_names(self.root, top))]
            except (FileNotFoundError, NotADirectoryError):
                return
            while folders:
                name = next(folders[-1], b"")
                if not name:
                    folders.pop()
                elif not name.startswith(beginning):
                    continue
                elif not name.endswith(b"/"):
                    if name > passed and (found := self._listed(name)):
                        yield found
                elif name > passed or passed.startswith(name):
                    try:
                        folders.append(iter(_names(self.root, name)))
                    except OSError as error:
                        if error.errno in _PERMANENT:
                            yield _unreadable(name[:-1], "folder")
                        elif error.errno != errno.ENOENT:  # that was removed meanwhile
                            raise

    def stat(self, key: str) -> Stat | None:
        """Size and time of an object, or None if there is none."""
        with self._explained("read", key):
            self._path(key)
            try:
                found = self._look(decode_key(key))
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise
            return None if found.kind == "folder" else found

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        with self._explained("delete", key):
            try:
                self._path(key).unlink()
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise

    def take(self, seen: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Remove or move an object as it was seen.

        The file is renamed before it is compared: whoever puts another file under its name in that moment keeps it, and
        a process that still writes into it does so in its new place. Meanwhile it has a hidden name in its own folder,
        where the next call finds it, and else the next listing (see `name_before`).
        """
        with self._explained("move" if to else "delete", seen.key):
            path = self._path(seen.key)
            held = _held(path)
            if not os.path.lexists(held):
                found = self.stat(seen.key)
                if found is None or found.version != seen.version:
                    return found is None
                path.rename(held)
            if not self._is_same(held, seen, sha256):
                _put_back(held, path)
                return False
            if to is None:
                held.unlink()
            else:
                self._move(held, to)
            _flush_folder(path.parent)
            return True

    def location(self, key: str) -> str:
        """Path of the object's file."""
        return str(self.root / key)

    def _file(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)

    def _path(self, key: str) -> Path:
        """The file of a key; raises :class:`AccessError` if a folder on the way to it is a link."""
        path = self._file(decode_key(check_key(key)))
        self._refuse_links(path)
        return path

    def _refuse_links(self, path: Path) -> None:
        for folder in path.parents:
            if folder == self.root:
                break
            if folder.is_symlink():
                raise AccessError(
                    f"{folder} is a symbolic link, which is not followed inside the store; put a folder in its place "
                    "(a mount serves as well)"
                )

    def _place(self, key: str) -> Path:
        """The file of a key, in a folder that exists."""
        path = self._path(key)
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _flush_folder(folder.parent)
        return path

    def _listed(self, name: bytes) -> Stat | None:
        """What is there, though it may not be looked at; None if it was removed meanwhile."""
        try:
            return self._look(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _PERMANENT:
                return _unreadable(name, FILE)
            raise

    def _look(self, name: bytes) -> Stat:
        found = os.lstat(self._file(name))
        changed, modified = found.st_ctime_ns, found.st_mtime_ns
        return Stat(
            key=encode_name(name),
            bytes=found.st_size,
            modified=_time(modified),
            version=f"{changed}.{modified}.{found.st_size}",
            changed=_time(changed),
            kind=_kind(found),
        )

    def _is_same(self, held: Path, seen: Stat, sha256: str | None) -> bool:
        """Whether a renamed file, whose time of change is that of the renaming, is what was seen."""
        found = os.lstat(held)
        if f"{found.st_mtime_ns}.{found.st_size}" != seen.version.partition(".")[2] or _kind(found) != seen.kind:
            return False
        if sha256 is None or seen.kind != FILE:
            return True
        with held.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def _move(self, held: Path, to: str) -> None:
        path = self._place(to)
        try:
            held.rename(path)
        except OSError as error:
            if error.errno != errno.EXDEV:  # the folder of the file is a mount of its own
                raise
            with held.open("rb") as file:
                self.put(to, file)
            held.unlink()
        _flush_folder(path.parent)

    @contextmanager
    def _written(self, data: bytes | BinaryIO) -> Iterator[Path]:
        """A flushed file with the data, on the same file system; removed afterwards unless it was moved."""
        folder = self.root / _SCRATCH
        self._refuse_links(folder / "-")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            with suppress(OSError):  # another process may remove it first, and a folder that others made may stay
                if time.time() - old.lstat().st_mtime > _SCRATCH_LIFETIME:
                    old.unlink()
        scratch = folder / uuid4().hex
        try:
            # The mode is what the umask of the process leaves of it.
            with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data.seek(0)
                    shutil.copyfileobj(data, file)
                file.flush()
                os.fsync(file.fileno())
            self._require_links(scratch)
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def _require_links(self, scratch: Path) -> None:
        """See, at the first write, that the file system has the hard links that decide between two writers."""
        if self._has_links:
            return
        link = scratch.with_suffix(".link")
        try:
            os.link(scratch, link)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise AccessError(
                f"the file system of {self.root} makes no hard links ({error.strerror}): two writers could both win, "
                "so nothing is written; put the store on ext4, xfs, btrfs, APFS, NTFS or NFS, or use S3"
            ) from error
        link.unlink()
        self._has_links = True

    @contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"cannot {verb} {self.location(key)}: {error.strerror}"
            if error.errno in _PERMANENT:
                raise AccessError(
                    f"{where}; give this user the right to {verb} below {self.root}, and clear the task"
                ) from error
            raise StoreError(
                f"{where}; free space, or give this user the right to {verb} below {self.root}, and clear the task"
            ) from error


def _names(root: Path, folder: bytes) -> list[bytes]:
    """Names of what is in a folder below the root, in their order; those of folders end in a slash."""
    with os.scandir(os.fsencode(root) + b"/" + folder) as entries:
        names = [folder + entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries]
    return sorted(name for name in names if name != f"{_SCRATCH}/".encode())


def _unreadable(name: bytes, kind: str) -> Stat:
    return Stat(encode_name(name), 0, datetime.now(UTC), kind=f"{UNREADABLE} {kind}")


def name_before(key: str) -> str:
    """The key of a file before a call that was interrupted took it; of any other file, its key."""
    return _HELD.sub("", key)


def _held(path: Path) -> Path:
    """The hidden name of a file that is being taken: its own, as far as there is room, after a mark."""
    if _HELD.search(path.name):
        return path
    name = os.fsencode(path.name)
    mark = f".taken.{hashlib.sha256(name).hexdigest()[:16]}.".encode()
    return path.with_name(os.fsdecode(mark + name[-200:]))


def _time(nanoseconds: int) -> datetime:
    """The time of a file; one that no calendar has, which some file systems keep, is far back or far ahead."""
    try:
        return min(max(datetime.fromtimestamp(nanoseconds / 1e9, UTC), _FAR_BACK), _FAR_AHEAD)
    except (OverflowError, OSError, ValueError):
        return _FAR_BACK if nanoseconds < 0 else _FAR_AHEAD


def _put_back(held: Path, path: Path) -> None:
    """Give a file its name again, unless that is taken: then it stays hidden, and the next listing shows it."""
    try:
        os.link(held, path, follow_symlinks=False)
        held.unlink()
    except FileExistsError:
        pass
    except PermissionError:  # Linux links no file of another user for one who may not write it
        if not os.path.lexists(path):
            held.rename(path)


def _kind(found: os.stat_result) -> str:
    return _KINDS.get(modes.S_IFMT(found.st_mode), "device")


def _flush_folder(folder: Path) -> None:
    """Make a rename or link in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
