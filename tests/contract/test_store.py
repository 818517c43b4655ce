"""What every object store promises; each implementation runs the same assertions."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fmnist_tasks.errors import MissingError, SettingsError, StoreError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Stat, Store, check_key, open_store


def test_what_is_put_is_got_and_replaced(store: Store) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"three")
    assert store.get("a/b.bin") == b"three"
    assert store.stat("a/b.bin") == Stat("a/b.bin", 5)


def test_a_key_that_is_not_there(store: Store) -> None:
    assert store.stat("a/b") is None
    assert list(store.list("a/")) == []
    store.delete("a/b")
    with pytest.raises(MissingError, match="a/b"):
        store.get("a/b")


def test_put_if_absent_never_replaces(store: Store) -> None:
    assert store.put_if_absent("k", b"first")
    assert not store.put_if_absent("k", b"second")
    assert store.get("k") == b"first"


def test_one_of_many_simultaneous_conditional_writers_wins(store: Store) -> None:
    barrier, won = threading.Barrier(16), []

    def write(number: int) -> None:
        barrier.wait()
        if store.put_if_absent("race", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("race") == str(won[0]).encode()


def test_list_is_ordered_and_by_prefix_not_by_folder(store: Store) -> None:
    for key in ("log/00000002", "log/00000010", "log/00000001", "logs/x", "other"):
        store.put(key, b"")
    assert [stat.key for stat in store.list("log/")] == ["log/00000001", "log/00000002", "log/00000010"]
    assert [stat.key for stat in store.list("lo")] == ["log/00000001", "log/00000002", "log/00000010", "logs/x"]


def test_names_that_people_give_their_files(store: Store) -> None:
    key = "incoming/Größe 42 (neu)+a=b.npz"
    store.put(key, b"x")
    assert [stat.key for stat in store.list("incoming/")] == [key]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\nb", "a\\b", "a/"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(SettingsError, match="no valid key"):
        store.put(key, b"x")


def test_a_store_that_cannot_be_written_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot write .*file/store/k: Not a directory; free space, or give"):
        FolderStore(tmp_path / "file" / "store").put("k", b"x")


def test_a_write_that_fails_leaves_the_old_object_and_no_rest(store: FolderStore, tmp_path: Path) -> None:
    store.put("folder/k", b"old")
    (tmp_path / "store" / "folder" / "taken").mkdir()
    with pytest.raises(StoreError):
        store.put("folder/taken", b"new")
    assert store.get("folder/k") == b"old"
    assert list((tmp_path / "store" / ".scratch").iterdir()) == []


@pytest.mark.parametrize("uri", ["", "store", "ftp://host/x", "file://host/x", "http://a"])
def test_a_uri_that_names_no_store(uri: str) -> None:
    with pytest.raises(SettingsError, match="FMNIST_STORE"):
        open_store(uri)


def test_a_folder_with_spaces_in_its_uri(tmp_path: Path) -> None:
    open_store((tmp_path / "a b").as_uri()).put("k", b"x")
    assert (tmp_path / "a b" / "k").read_bytes() == b"x"


def test_check_key_returns_the_key() -> None:
    assert check_key("runs/manual__2026-11-24T02:00:00+00:00/train.json").startswith("runs/")
