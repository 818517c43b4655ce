"""What every object store promises; each implementation runs the same assertions."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks.errors import MissingError, SettingsError, StoreError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Store, check_key, open_store, read_clock


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "folder")


@pytest.fixture(name="store")
def each_store(store_of_each_kind: Store) -> Store:
    return store_of_each_kind


def keys(store: Store, prefix: str, after: str = "") -> list[str]:
    return [stat.key for stat in store.list(prefix, after) if stat.key != "conditional-create.txt"]


def test_what_is_put_is_got_and_replaced(store: Store) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"three")
    assert store.get("a/b.bin") == b"three"
    found = store.stat("a/b.bin")
    assert found
    assert (found.key, found.bytes) == ("a/b.bin", 5)
    assert abs(datetime.now(UTC) - found.modified) < timedelta(minutes=5)


def test_the_clock_is_the_stores_own(store: Store) -> None:
    store.put("before", b"")
    now = read_clock(store)
    store.put("after", b"")
    before, after = store.stat("before"), store.stat("after")
    assert before
    assert after
    assert before.modified <= now <= after.modified


@pytest.mark.parametrize("size", [0, 1, (8 << 20) + 1, 20 << 20])  # in one piece and in parts
def test_a_file_is_put_and_opened_whole(store: Store, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    source = io.BytesIO(content)
    source.seek(size // 2)
    store.put("k.npz", source)
    assert store.stat("k.npz").bytes == size
    with store.open("k.npz") as file:
        assert file.read() == content
        file.seek(size // 2)
        assert file.read(1) == content[size // 2 : size // 2 + 1]
    assert not source.closed


def test_a_key_that_is_not_there(store: Store) -> None:
    assert store.stat("a/b") is None
    assert list(store.list("a/")) == []
    store.delete("a/b")
    for read in (store.get, store.open):
        with pytest.raises(MissingError, match="a/b does not exist"):
            read("a/b")
    store.put("a/c", b"now there is a store")
    assert store.stat("a/b") is None
    with pytest.raises(MissingError, match="a/b does not exist"):
        store.get("a/b")


def test_what_is_deleted_is_gone_and_can_be_created_again(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    assert store.stat("a/b") is None
    assert "a/b" not in keys(store, "")
    assert store.put_if_absent("a/b", b"y")


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
    for key in ("log/00000002", "log/00000010", "log/00000001", "logs/x", "log-2/x", "other"):
        store.put(key, b"")
    assert keys(store, "log/") == ["log/00000001", "log/00000002", "log/00000010"]
    assert keys(store, "lo") == ["log-2/x", "log/00000001", "log/00000002", "log/00000010", "logs/x"]


def test_list_goes_on_after_a_key(store: Store) -> None:
    for number in range(1, 6):
        store.put(f"log/{number}", b"")
    assert keys(store, "log/", after="log/3") == ["log/4", "log/5"]
    assert keys(store, "log/", after="log/35") == ["log/4", "log/5"]
    assert keys(store, "log/", after="log/5") == []


def test_more_keys_than_one_page_holds(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(f"log/{number:04d}", b""), range(2001)))
    assert keys(store, "log/") == [f"log/{number:04d}" for number in range(2001)]
    assert keys(store, "log/", after="log/0999") == [f"log/{number:04d}" for number in range(1000, 2001)]


def test_names_that_people_give_their_files(store: Store) -> None:
    key = "incoming/Größe 42 (neu)+a=b.npz"
    store.put(key, b"x")
    assert keys(store, "incoming/") == [key]
    assert store.get(key) == b"x"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a\nb", "a\\b", "a/"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(SettingsError, match="no valid key"):
        store.put(key, b"x")


def test_a_store_that_cannot_be_written_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot write .*file/store/k: Not a directory; free space, or give"):
        FolderStore(tmp_path / "file" / "store").put("k", b"x")


def test_a_write_that_fails_leaves_the_old_object_and_no_rest(folder: FolderStore) -> None:
    folder.put("folder/k", b"old")
    (folder.root / "folder" / "taken").mkdir()
    with pytest.raises(StoreError):
        folder.put("folder/taken", b"new")
    assert folder.get("folder/k") == b"old"
    assert list((folder.root / ".scratch").iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["", "store", "ftp://host/x", "file://host/x", "http://a", "file:~/x", "file:///~/x", "file:x"]
)
def test_a_uri_that_names_no_store(uri: str) -> None:
    with pytest.raises(SettingsError, match="FMNIST_STORE"):
        open_store(uri)


@pytest.mark.parametrize("name", ["a b", "ü\u00a0~", "100 %", "a?b#c", "FILE"])
def test_a_folder_with_an_unusual_name_in_its_uri(tmp_path: Path, name: str) -> None:
    uri = (tmp_path / name).as_uri()
    for spelling in (
        uri,
        uri.replace("file://", "file:"),
        uri.replace("file:", "FILE:"),
        uri.replace("file://", "file:///"),
    ):
        open_store(spelling).put("k", spelling.encode())
        assert (tmp_path / name / "k").read_bytes() == spelling.encode()


def test_check_key_returns_the_key() -> None:
    assert check_key("runs/manual__2026-11-24T02:00:00+00:00/train.json").startswith("runs/")
