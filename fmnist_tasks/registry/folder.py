"""The embedded object store: a folder of files. A write goes to a temporary file, which is then moved or linked.

Symbolic links below the folder are not followed: a batch that is a link would bring a file from elsewhere into the
store. The folder itself may be a link.
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
    DEFAULT_MAX_BYTES,
    FILE,
    UNREADABLE,
    Stat,
    decode_key,
    decode_prefix,
    encode_name,
    require_max_size,
    require_valid_key,
)

_SCRATCH = ".scratch"  # temporary files; those of a killed process are removed after a day
_SCRATCH_LIFETIME = 24 * 3600  # seconds

_HIDDEN_MARK = re.compile(r"(?<![^/])\.taken\.[0-9a-f]{16}\.(?=[^/]+$)")

_KINDS = {
    modes.S_IFREG: FILE,
    modes.S_IFDIR: "folder",
    modes.S_IFLNK: "symbolic link",
    modes.S_IFIFO: "pipe",
    modes.S_IFSOCK: "socket",
}
_MISSING_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
# Missing rights, a read-only file system, or one that cannot store the name: a retry cannot help.
_PERMANENT_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.EILSEQ, errno.ENAMETOOLONG}
# Far enough from the limits of datetime for arithmetic.
_MIN_TIME, _MAX_TIME = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_NO_LINK_ERRORS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FolderStore:
    """Objects as files below one folder, which the first write creates."""

    def __init__(self, root: Path, keys: Keys = NO_KEYS) -> None:
        self.keys = keys
        self.dataset = ""
        self.root = root
        self._supports_links = False  # whether the file system has been shown to support hard links

    def get(self, key: str, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Return the bytes of an object."""
        with self.open(key, max_bytes) as file, self._explain_errors("read", key):
            return file.read()

    def open(self, key: str, max_bytes: int | None = None) -> BinaryIO:
        """Open the object's file for reading."""
        with self._explain_errors("read", key):
            try:  # without O_NONBLOCK, opening a pipe would block
                descriptor = os.open(self._resolve_path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in _MISSING_ERRORS:
                    raise MissingError(f"{self.location(key)} does not exist") from error
                raise
            status = os.fstat(descriptor)
            kind = _describe_kind(status)
            if kind == FILE:
                file = os.fdopen(descriptor, "rb")
                try:
                    require_max_size(key, status.st_size, max_bytes)
                except IntegrityError:
                    file.close()
                    raise
                return file
            os.close(descriptor)
            if kind == "folder":
                raise MissingError(f"{self.location(key)} does not exist")
            raise AccessError(f"{self.location(key)} is a {kind}, which cannot be read; put a file in its place")

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        """Write an object, or replace it."""
        with self._explain_errors("write", key), self._write_temporary(data) as scratch:
            path = self._prepare_path(key)
            scratch.replace(path)
            _flush_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes | BinaryIO) -> bool:
        """Write an object only if the key is free, by a hard link: the file system creates or refuses it atomically."""
        with self._explain_errors("write", key), self._write_temporary(data) as scratch:
            path = self._prepare_path(key)
            try:
                os.link(scratch, path)
            except FileExistsError:
                return False
            _flush_folder(path.parent)
            return True

    def list(self, prefix: str, after: str = "") -> Iterator[Stat]:
        """Yield the objects whose names start with the prefix and come after `after`, in the order of their names."""
        start, last = decode_prefix(prefix), decode_key(after)
        top = start[: start.rfind(b"/") + 1]
        with self._explain_errors("list", prefix):
            self._refuse_links(self._resolve_file(top + b"-"))
            try:
                folders = [iter(_list_names(self.root, top))]
            except (FileNotFoundError, NotADirectoryError):
                return
            while folders:
                name = next(folders[-1], b"")
                if not name:
                    folders.pop()
                elif not name.startswith(start):
                    continue
                elif not name.endswith(b"/"):
                    if name > last and (stat := self._try_stat(name)):
                        yield stat
                elif name > last or last.startswith(name):
                    try:
                        folders.append(iter(_list_names(self.root, name)))
                    except OSError as error:
                        if error.errno in _PERMANENT_ERRORS:
                            yield _make_unreadable_stat(name[:-1], "folder")
                        elif error.errno != errno.ENOENT:  # removed in the meantime
                            raise

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object, or None if it does not exist."""
        with self._explain_errors("read", key):
            self._resolve_path(key)
            try:
                stat = self._read_stat(decode_key(key))
            except OSError as error:
                if error.errno in _MISSING_ERRORS:
                    return None
                raise
            return None if stat.kind == "folder" else stat

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        with self._explain_errors("delete", key):
            try:
                self._resolve_path(key).unlink()
            except OSError as error:
                if error.errno not in _MISSING_ERRORS:
                    raise

    def remove_if_unchanged(self, stat: Stat, to: str | None = None, sha256: str | None = None) -> bool:
        """Delete an object, or move it to the key `to`, if it has not changed since the stat.

        The file is renamed before it is compared. So a file that another process puts under the same name at that
        moment stays, and a process that still writes to the old file writes to it in its new place. After an
        interruption the file has a hidden name in the same folder: a repeated call continues from there, and the next
        listing shows it (see `to_original_key`).
        """
        with self._explain_errors("move" if to else "delete", stat.key):
            path = self._resolve_path(stat.key)
            hidden = _make_hidden_path(path)
            if not os.path.lexists(hidden):
                current = self.stat(stat.key)
                if current is None or current.version != stat.version:
                    return current is None
                path.rename(hidden)
            if not self._is_unchanged(hidden, stat, sha256):
                _restore_name(hidden, path)
                return False
            if to is None:
                hidden.unlink()
            else:
                self._move(hidden, to)
            _flush_folder(path.parent)
            return True

    def location(self, key: str) -> str:
        """Return the path of the object's file."""
        return str(self.root / key)

    def _resolve_file(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)

    def _resolve_path(self, key: str) -> Path:
        """Return the path of a key; raises :class:`AccessError` if one of its folders is a symbolic link."""
        path = self._resolve_file(decode_key(require_valid_key(key)))
        self._refuse_links(path)
        return path

    def _refuse_links(self, path: Path) -> None:
        for folder in path.parents:
            if folder == self.root:
                break
            if folder.is_symlink():
                raise AccessError(
                    f"{folder} is a symbolic link, which is not followed inside the store; put a folder or a mount in "
                    "its place"
                )

    def _prepare_path(self, key: str) -> Path:
        """Return the path of a key, and create its folder."""
        path = self._resolve_path(key)
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _flush_folder(folder.parent)
        return path

    def _try_stat(self, name: bytes) -> Stat | None:
        """Return the stat of a name, even if it is unreadable; None if it was removed in the meantime."""
        try:
            return self._read_stat(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _PERMANENT_ERRORS:
                return _make_unreadable_stat(name, FILE)
            raise

    def _read_stat(self, name: bytes) -> Stat:
        status = os.lstat(self._resolve_file(name))
        changed, modified = status.st_ctime_ns, status.st_mtime_ns
        return Stat(
            key=encode_name(name),
            bytes=status.st_size,
            modified=_parse_time(modified),
            version=f"{changed}.{modified}.{status.st_size}",
            changed=_parse_time(changed),
            kind=_describe_kind(status),
        )

    def _is_unchanged(self, hidden: Path, stat: Stat, sha256: str | None) -> bool:
        """Return whether a renamed file matches the stat, except for its time of change, which the renaming has set."""
        status = os.lstat(hidden)
        if (
            f"{status.st_mtime_ns}.{status.st_size}" != stat.version.partition(".")[2]
            or _describe_kind(status) != stat.kind
        ):
            return False
        if sha256 is None or stat.kind != FILE:
            return True
        with hidden.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def _move(self, hidden: Path, to: str) -> None:
        path = self._prepare_path(to)
        try:
            hidden.rename(path)
        except OSError as error:
            if error.errno != errno.EXDEV:  # the file's folder is a separate mount
                raise
            with hidden.open("rb") as file:
                self.put(to, file)
            hidden.unlink()
        _flush_folder(path.parent)

    @contextmanager
    def _write_temporary(self, data: bytes | BinaryIO) -> Iterator[Path]:
        """Yield a flushed file with the data, on the same file system; it is removed at the end unless it was moved."""
        folder = self.root / _SCRATCH
        self._refuse_links(folder / "-")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            with suppress(OSError):  # another process may remove it first; a folder in here stays
                if time.time() - old.lstat().st_mtime > _SCRATCH_LIFETIME:
                    old.unlink()
        scratch = folder / uuid4().hex
        try:
            # The umask of the process limits the mode.
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
        """Check at the first write that the file system supports hard links, which decide between two writers."""
        if self._supports_links:
            return
        link = scratch.with_suffix(".link")
        try:
            os.link(scratch, link)
        except OSError as error:
            if error.errno not in _NO_LINK_ERRORS:
                raise
            raise AccessError(
                f"the file system of {self.root} does not support hard links ({error.strerror}): two writers could "
                "both win, so nothing is written; put the store on ext4, xfs, btrfs, APFS, NTFS or NFS, or use S3"
            ) from error
        link.unlink()
        self._supports_links = True

    @contextmanager
    def _explain_errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot {verb} {self.location(key)}: {error.strerror}"
            if error.errno in _PERMANENT_ERRORS:
                raise AccessError(
                    f"{message}; give this user the right to {verb} below {self.root}, and clear the task"
                ) from error
            raise StoreError(
                f"{message}; free space, or give this user the right to {verb} below {self.root}, and clear the task"
            ) from error


def _list_names(root: Path, folder: bytes) -> list[bytes]:
    """Return the sorted names of the entries of a folder below the root; those of folders end in a slash."""
    with os.scandir(os.fsencode(root) + b"/" + folder) as entries:
        names = [folder + entry.name + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries]
    return sorted(name for name in names if name != f"{_SCRATCH}/".encode())


def _make_unreadable_stat(name: bytes, kind: str) -> Stat:
    return Stat(encode_name(name), 0, datetime.now(UTC), kind=f"{UNREADABLE} {kind}")


def to_original_key(key: str) -> str:
    """Return the original key of a file that an interrupted removal has hidden; any other key is unchanged."""
    return _HIDDEN_MARK.sub("", key)


def _make_hidden_path(path: Path) -> Path:
    """Return the hidden name of a file that is being removed: a mark, then the last 200 bytes of its name."""
    if _HIDDEN_MARK.search(path.name):
        return path
    name = os.fsencode(path.name)
    mark = f".taken.{hashlib.sha256(name).hexdigest()[:16]}.".encode()
    return path.with_name(os.fsdecode(mark + name[-200:]))


def _parse_time(nanoseconds: int) -> datetime:
    """Return a file's time, limited to the years 1000 to 9000: some file systems store times that datetime cannot."""
    try:
        return min(max(datetime.fromtimestamp(nanoseconds / 1e9, UTC), _MIN_TIME), _MAX_TIME)
    except (OverflowError, OSError, ValueError):
        return _MIN_TIME if nanoseconds < 0 else _MAX_TIME


def _restore_name(hidden: Path, path: Path) -> None:
    """Give a hidden file its name back, unless that is taken: then it stays hidden, and the next listing shows it."""
    try:
        os.link(hidden, path, follow_symlinks=False)
        hidden.unlink()
    except FileExistsError:
        pass
    except PermissionError:  # on Linux, linking another user's file needs the right to write to it
        if not os.path.lexists(path):
            hidden.rename(path)


def _describe_kind(status: os.stat_result) -> str:
    return _KINDS.get(modes.S_IFMT(status.st_mode), "device")


def _flush_folder(folder: Path) -> None:
    """Make a rename or link in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
