"""Behaviour that only folders have: links, pipes, rights, open files, and limits of file systems."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import stat as modes
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fmnist_tasks.errors import AccessError, MissingError, StoreError
from fmnist_tasks.registry import folder
from fmnist_tasks.registry.folder import FolderStore

SHA256 = hashlib.sha256(b"x").hexdigest()


def list_kinds(store: FolderStore, prefix: str = "") -> dict[str, str]:
    return {stat.key: stat.kind for stat in store.list(prefix)}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture
def unprivileged_store() -> Iterator[FolderStore]:
    """A store of an unprivileged user, as which the test runs."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "store").mkdir()
    if is_root := os.geteuid() == 0:
        for path in (folder, folder / "store"):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
    yield FolderStore(folder / "store")
    if is_root:
        os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.parametrize("seconds", [999_999_999_999, 2**62, -(2**62)])
def test_an_impossible_file_time_does_not_stop_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Damaged archives have such times, and Btrfs, tmpfs and ZFS store them."""
    store = FolderStore(tmp_path)
    store.put("k", b"x")
    lstat = os.lstat
    monkeypatch.setattr(folder.os, "lstat", lambda path: StatusWithTime(lstat(path), seconds))
    (stat,) = store.list("")
    assert stat.modified + timedelta(days=365) > stat.modified > datetime(1, 1, 1, tzinfo=UTC)


class StatusWithTime:
    """The status of a file, with another modification time."""

    def __init__(self, status: os.stat_result, seconds: int) -> None:
        self._status, self.st_mtime_ns = status, seconds * 10**9

    def __getattr__(self, name: str) -> Any:
        return getattr(self._status, name)


def test_a_folder_among_the_temporary_files_does_not_stop_a_write(tmp_path: Path) -> None:
    """Some network drives create one in every folder."""
    store = FolderStore(tmp_path)
    old = tmp_path / ".scratch" / "@eaDir"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    store.put("k", b"x")
    assert store.get("k") == b"x"


def test_links_are_listed_and_never_followed(store: FolderStore, outside: Path) -> None:
    store.put("incoming/a", b"x")
    (store.root / "incoming" / "file").symlink_to(outside / "secret")
    (store.root / "incoming" / "folder").symlink_to(outside)
    (store.root / "incoming" / "inside").symlink_to(store.root / "incoming" / "a")
    (store.root / "incoming" / "nowhere").symlink_to("nowhere")
    links = dict.fromkeys(("incoming/file", "incoming/folder", "incoming/inside", "incoming/nowhere"), "symbolic link")
    assert list_kinds(store) == {"incoming/a": "file", **links}
    for key in links:
        with pytest.raises(AccessError, match=r"Too many levels of symbolic links|is a symbolic link"):
            store.get(key)
    for call in (store.get, store.stat, store.delete, lambda key: store.put(key, b"y")):
        with pytest.raises(AccessError, match=r"incoming/folder is a symbolic link, which is not followed"):
            call("incoming/folder/secret")
    with pytest.raises(AccessError, match="is a symbolic link"):
        list(store.list("incoming/folder/"))
    store.put("incoming/file", b"a file in its place")
    for key in list(links)[1:]:
        store.delete(key)
    assert list_kinds(store) == {"incoming/a": "file", "incoming/file": "file"}
    assert (outside / "secret").read_bytes() == b"secret"


def test_the_folder_of_the_store_may_be_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside)
    store = FolderStore(tmp_path / "link")
    store.put("a/b", b"x")
    assert (outside / "a" / "b").read_bytes() == b"x"
    assert list_kinds(store, "a/") == {"a/b": "file"}


def test_pipes_and_sockets_are_listed_and_do_not_block(store: FolderStore) -> None:
    store.put("incoming/a", b"x")
    os.mkfifo(store.root / "incoming" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(store.root / "incoming" / "socket"))
        assert list_kinds(store) == {"incoming/a": "file", "incoming/pipe": "pipe", "incoming/socket": "socket"}
        for key in ("incoming/pipe", "incoming/socket"):
            with pytest.raises((AccessError, StoreError), match=key):
                store.get(key)
        assert all(store.remove_if_unchanged(stat) for stat in list(store.list("incoming/")))
    assert list_kinds(store) == {}


def test_a_folder_is_not_an_object(store: FolderStore) -> None:
    store.put("a/b", b"x")
    assert store.stat("a") is None
    with pytest.raises(MissingError, match="a does not exist"):
        store.get("a")


def test_a_key_that_is_too_long_for_a_file_is_missing(store: FolderStore) -> None:
    key = "releases/" + "x" * 300
    assert store.stat(key) is None
    store.delete(key)
    with pytest.raises(MissingError, match="does not exist"):
        store.get(key)
    with pytest.raises(AccessError, match="File name too long"):
        store.put(key, b"x")


@pytest.fixture
def removed_store(store: FolderStore) -> Iterator[FolderStore]:
    """A store that is removed after the test, since pytest cannot remove folders of this depth."""
    yield store
    subprocess.run(["rm", "-rf", store.root], check=True)


def test_folders_deeper_than_the_recursion_limit_are_listed(removed_store: FolderStore) -> None:
    store = removed_store
    store.put("incoming/e", b"x")
    deep = store.root / "incoming"
    for _ in range(1500):
        deep /= "d"
        deep.mkdir()
    (deep / "b").write_bytes(b"x")
    first, second = store.list("incoming/")
    assert (first.key.count("/d"), second.key) == (1500, "incoming/e")
    assert store.remove_if_unchanged(first, "quarantine/b", SHA256)


def test_missing_rights_are_permanent_errors_that_name_the_object(unprivileged_store: FolderStore) -> None:
    store = unprivileged_store
    for key in ("incoming/a", "incoming/closed/b", "incoming/listed/c", "incoming/z"):
        store.put(key, b"x")
    (store.root / "incoming" / "a").chmod(0)
    (store.root / "incoming" / "closed").chmod(0)
    (store.root / "incoming" / "listed").chmod(0o400)
    assert list_kinds(store) == {
        "incoming/a": "file",
        "incoming/closed": "unreadable folder",
        "incoming/listed/c": "unreadable file",
        "incoming/z": "file",
    }
    with pytest.raises(AccessError, match=r"cannot read .*incoming/a: Permission denied; give this user the right"):
        store.get("incoming/a")
    (store.root / "incoming").chmod(0o500)
    with pytest.raises(AccessError, match=r"cannot write .*incoming/y: Permission denied"):
        store.put("incoming/y", b"x")
    (stat,) = (stat for stat in store.list("incoming/") if stat.key == "incoming/z")
    with pytest.raises(AccessError, match=r"cannot delete .*incoming/z: Permission denied"):
        store.remove_if_unchanged(stat)
    for name in ("incoming", "incoming/closed", "incoming/listed"):
        (store.root / name).chmod(0o700)


def test_the_umask_decides_who_may_read(store: FolderStore) -> None:
    before = os.umask(0o077)
    try:
        store.put("a", b"x")
        store.put_if_absent("b", b"x")
    finally:
        os.umask(before)
    assert {modes.S_IMODE((store.root / key).stat().st_mode) for key in ("a", "b")} == {0o600}


def test_a_file_system_without_hard_links_is_refused_at_the_first_write(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(AccessError, match=r"does not support hard links .* two writers could both win"):
        store.put("a", b"x")
    assert list_kinds(store) == {}


def test_the_parent_of_each_new_folder_is_flushed(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"x")
    flushed: list[Path] = []
    monkeypatch.setattr(folder, "_flush_folder", flushed.append)
    store.put("b/c/d", b"x")
    assert set(flushed) == {store.root, store.root / "b", store.root / "b" / "c"}


def test_a_writer_that_has_the_file_open_loses_nothing(store: FolderStore) -> None:
    store.put("incoming/b", b"")
    with (store.root / "incoming" / "b").open("wb") as writer:
        writer.write(b"x")
        writer.flush()
        (stat,) = store.list("incoming/")
        assert store.remove_if_unchanged(stat, "quarantine/r/b", SHA256)
        writer.write(b"y")
    assert store.get("quarantine/r/b") == b"xy"


@pytest.mark.parametrize("to", [None, "quarantine/r/b"])
def test_a_file_that_replaces_it_at_the_last_moment_stays(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, to: str | None
) -> None:
    store.put("incoming/b", b"x")
    (stat,) = store.list("incoming/")
    read_stat = FolderStore.stat

    def read_stat_and_replace(self: FolderStore, key: str) -> object:
        current = read_stat(self, key)
        (store.root / "new").write_bytes(b"other")
        (store.root / "new").rename(store.root / "incoming" / "b")
        return current

    monkeypatch.setattr(FolderStore, "stat", read_stat_and_replace)
    assert not store.remove_if_unchanged(stat, to, SHA256)
    assert list_kinds(store) == {"incoming/b": "file"}
    assert store.get("incoming/b") == b"other"


def test_a_file_of_another_user_that_cannot_be_linked_gets_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(folder.os, "link", refuse)
    (tmp_path / "hidden").write_bytes(b"x")
    folder._restore_name(tmp_path / "hidden", tmp_path / "b")
    (tmp_path / "hidden").write_bytes(b"y")
    folder._restore_name(tmp_path / "hidden", tmp_path / "b")
    assert [(tmp_path / name).read_bytes() for name in ("b", "hidden")] == [b"x", b"y"]


def test_a_third_file_is_not_overwritten_when_the_second_gets_its_name_back(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("incoming/b", b"x")
    (stat,) = store.list("incoming/")

    def write(data: bytes) -> None:
        (store.root / "new").write_bytes(data)
        (store.root / "new").rename(store.root / "incoming" / "b")

    read_stat, compare = FolderStore.stat, FolderStore._is_unchanged
    monkeypatch.setattr(FolderStore, "stat", lambda self, key: (read_stat(self, key), write(b"second"))[0])
    monkeypatch.setattr(FolderStore, "_is_unchanged", lambda self, *args: (compare(self, *args), write(b"third"))[0])
    assert not store.remove_if_unchanged(stat, None, SHA256)
    assert {store.get(stat.key) for stat in store.list("incoming/")} == {b"second", b"third"}


def test_a_change_that_keeps_size_and_times_is_detected(store: FolderStore) -> None:
    store.put("incoming/b", b"old")
    (stat,) = store.list("incoming/")
    path = store.root / "incoming" / "b"
    before = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ctime_ns >= before.st_ctime_ns
    assert not store.remove_if_unchanged(stat)
    assert store.get("incoming/b") == b"new"


def test_changed_content_with_unchanged_times_is_not_removed(store: FolderStore) -> None:
    store.put("incoming/b", b"x")
    (stat,) = store.list("incoming/")
    assert not store.remove_if_unchanged(stat, None, hashlib.sha256(b"content that was read").hexdigest())
    assert store.get("incoming/b") == b"x"


@pytest.mark.parametrize("to", [None, "quarantine/r/b"])
def test_an_interrupted_removal_is_completed(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, to: str | None
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    store.put("incoming/b", b"x")
    (stat,) = store.list("incoming/")
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "_is_unchanged", die)
        with pytest.raises(Killed):
            store.remove_if_unchanged(stat, to, SHA256)
    ((hidden, kind),) = list_kinds(store, "incoming/").items()
    assert (hidden.startswith("incoming/."), kind) == (True, "file")  # the next listing shows it
    assert folder.to_original_key(hidden) == "incoming/b"
    assert store.remove_if_unchanged(stat, to, SHA256)
    assert list(list_kinds(store)) == ([] if to is None else [to])


def test_a_file_that_an_interrupted_removal_has_hidden_can_be_removed(store: FolderStore) -> None:
    store.put("incoming/sub/.taken.0123456789abcdef.b.npz", b"x")
    (stat,) = store.list("incoming/")
    assert folder.to_original_key(stat.key) == "incoming/sub/b.npz"
    assert folder.to_original_key("incoming/.taken.0123456789abcdef.sub/b") == "incoming/.taken.0123456789abcdef.sub/b"
    assert store.remove_if_unchanged(stat, "quarantine/r/b", SHA256)
    assert list_kinds(store) == {"quarantine/r/b": "file"}


def test_a_file_is_moved_out_of_a_mount(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("incoming/b", b"x")
    (stat,) = store.list("incoming/")
    rename = Path.rename

    def rename_within(self: Path, target: Path) -> Path:
        if "quarantine" in str(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_within)
    assert store.remove_if_unchanged(stat, "quarantine/r/b", SHA256)
    assert list_kinds(store) == {"quarantine/r/b": "file"}
    assert store.get("quarantine/r/b") == b"x"


def test_a_listing_after_a_key_skips_earlier_folders(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        store.put(f"inbox/{number:02d}/image", b"x")
    scanned: list[bytes] = []
    list_names = folder._list_names
    monkeypatch.setattr(folder, "_list_names", lambda root, name: scanned.append(name) or list_names(root, name))
    assert [stat.key for stat in store.list("inbox/", after="inbox/17/image")] == ["inbox/18/image", "inbox/19/image"]
    assert scanned == [b"inbox/", b"inbox/17/", b"inbox/18/", b"inbox/19/"]


def test_old_temporary_files_are_not_deleted_through_a_link(store: FolderStore, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").touch()
    os.utime(foreign / "file", (0, 0))
    store.root.mkdir(exist_ok=True)
    (store.root / ".scratch").symlink_to(foreign)
    with pytest.raises(AccessError, match=r"\.scratch is a symbolic link, which is not followed"):
        store.put("a", b"x")
    assert list(foreign.iterdir()) == [foreign / "file"]
