"""The contract of the object store; every implementation runs the same tests."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks.errors import AccessError, IntegrityError, MissingError, SettingsError, StoreError
from fmnist_tasks.registry import s3
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.scoped import ScopedStore
from fmnist_tasks.registry.store import Store, decode_key, read_clock, require_valid_key
from fmnist_tasks.registry.stores import open_store


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "folder")


@pytest.fixture(name="store", params=["whole", "dataset"])
def every_store(request: pytest.FixtureRequest, store_of_each_kind: Store) -> Store:
    return store_of_each_kind if request.param == "whole" else ScopedStore(store_of_each_kind, "birds")


def write_foreign(store: Store, name: str, data: bytes) -> None:
    """Write an object by its name, as programs do that do not know this project's keys."""
    if isinstance(store, ScopedStore):
        write_foreign(store._store, f"datasets/{store.dataset}/{name}", data)
    elif isinstance(store, FolderStore):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    else:
        store.prepare_bucket()
        store._client.put_object(store.bucket, name, io.BytesIO(data), len(data))


def list_keys(store: Store, prefix: str, after: str = "") -> list[str]:
    return [stat.key for stat in store.list(prefix, after) if stat.key != "conditional-create.txt"]


def test_an_object_is_written_read_and_replaced(store: Store) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"three")
    assert store.get("a/b.bin") == b"three"
    stat = store.stat("a/b.bin")
    assert stat
    assert (stat.key, stat.bytes) == ("a/b.bin", 5)
    assert abs(datetime.now(UTC) - stat.modified) < timedelta(minutes=5)


def test_an_object_larger_than_expected_is_not_read(store: Store) -> None:
    store.put("a/b.bin", b"12345")
    assert store.get("a/b.bin", 5) == b"12345"
    for read in (store.get, store.open):
        with pytest.raises(IntegrityError, match=r"a/b.bin has 5 bytes, expected at most 4"):
            read("a/b.bin", 4)
    with store.open("a/b.bin") as file:
        assert file.read() == b"12345"


def test_the_clock_is_that_of_the_store(store: Store) -> None:
    store.put("before", b"")
    now = read_clock(store)
    store.put("after", b"")
    before, after = store.stat("before"), store.stat("after")
    assert before
    assert after
    assert before.modified <= now <= after.modified


@pytest.mark.parametrize("size", [0, 1, (8 << 20) + 1, 20 << 20])  # in one part, and in several
def test_a_file_is_written_and_opened_complete(store: Store, size: int) -> None:
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


def test_a_missing_key(store: Store) -> None:
    assert store.stat("a/b") is None
    assert list(store.list("a/")) == []
    store.delete("a/b")
    for read in (store.get, store.open):
        with pytest.raises(MissingError, match="a/b does not exist"):
            read("a/b")
    store.put("a/c", b"now the store exists")
    assert store.stat("a/b") is None
    with pytest.raises(MissingError, match="a/b does not exist"):
        store.get("a/b")


def test_a_deleted_object_can_be_created_again(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    assert store.stat("a/b") is None
    assert "a/b" not in list_keys(store, "")
    assert store.put_if_absent("a/b", b"y")


def test_put_if_absent_never_replaces(store: Store) -> None:
    assert store.put_if_absent("k", b"first")
    assert not store.put_if_absent("k", b"second")
    assert store.get("k") == b"first"


def test_one_of_many_simultaneous_conditional_writers_wins(store: Store) -> None:
    barrier, winners = threading.Barrier(16), []

    def write(number: int) -> None:
        barrier.wait()
        if store.put_if_absent("race", str(number).encode()):
            winners.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert store.get("race") == str(winners[0]).encode()


def test_a_listing_is_sorted_and_by_prefix_not_by_folder(store: Store) -> None:
    for key in ("log/00000002", "log/00000010", "log/00000001", "logs/x", "log-2/x", "other"):
        store.put(key, b"")
    assert list_keys(store, "log/") == ["log/00000001", "log/00000002", "log/00000010"]
    assert list_keys(store, "lo") == ["log-2/x", "log/00000001", "log/00000002", "log/00000010", "logs/x"]


def test_a_listing_continues_after_a_key(store: Store) -> None:
    for number in range(1, 6):
        store.put(f"log/{number}", b"")
    assert list_keys(store, "log/", after="log/3") == ["log/4", "log/5"]
    assert list_keys(store, "log/", after="log/35") == ["log/4", "log/5"]
    assert list_keys(store, "log/", after="log/5") == []


def test_a_listing_of_several_pages(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(f"log/{number:04d}", b""), range(2001)))
    assert list_keys(store, "log/") == [f"log/{number:04d}" for number in range(2001)]
    assert list_keys(store, "log/", after="log/0999") == [f"log/{number:04d}" for number in range(1000, 2001)]


NAMES = {
    "Größe 42 (neu)+a=b.npz": "Größe 42 (neu)+a=b.npz",
    "Screenshot 2.30.00\u202fPM.png": "Screenshot 2.30.00%E2%80%AFPM.png",
    "no\u00a0break\u3000space": "no%C2%A0break%E3%80%80space",
    "zero\u200bwidth": "zero%E2%80%8Bwidth",
    "50% off": "50%25 off",
    "50%25 off": "50%2525 off",
    "tab\tand\nnew line": "tab%09and%0Anew line",
    "back\\slash": "back%5Cslash",
    "<img src=x onerror=alert(1)>.npz": "<img src=x onerror=alert(1)>.npz",
    "-rf": "-rf",
    "e\u0301 and \u00e9": "e\u0301 and \u00e9",
    "x" * 250: "x" * 250,
}


def test_unusual_names_of_files(store: Store) -> None:
    for name, key in NAMES.items():
        write_foreign(store, f"incoming/{name}", key.encode())
    names = sorted(f"incoming/{name}".encode() for name in NAMES)
    assert [decode_key(key) for key in list_keys(store, "incoming/")] == names
    for name, key in NAMES.items():
        assert store.get(f"incoming/{key}") == key.encode()
        assert store.stat(f"incoming/{key}").bytes == len(key.encode())
        assert list_keys(store, f"incoming/{key}") == [f"incoming/{key}"] or name.startswith("50%")
        store.put(f"incoming/{key}", b"other")
    middle = list_keys(store, "incoming/")[5]
    assert [decode_key(key) for key in list_keys(store, "incoming/", after=middle)] == names[6:]
    for stat in list(store.list("incoming/")):
        store.delete(stat.key)
    assert list_keys(store, "") == []


def test_a_name_that_is_not_text_has_a_key(folder: FolderStore) -> None:
    folder.put("incoming/a", b"x")
    (folder.root / "incoming" / os.fsdecode(b"latin-\xe9.npz")).write_bytes(b"y")
    assert list_keys(folder, "incoming/") == ["incoming/a", "incoming/latin-%E9.npz"]
    assert folder.get("incoming/latin-%E9.npz") == b"y"


@pytest.mark.integration
@pytest.mark.parametrize("marker", ["incoming/", "runs/", "incoming/a b/"])
def test_markers_of_folders_are_not_listed(minio_store: S3Store, marker: str) -> None:
    minio_store.put("incoming/b", b"x")
    minio_store._client.put_object(minio_store.bucket, marker, io.BytesIO(b""), 0)
    assert list_keys(minio_store, "") == list_keys(minio_store, "incoming/") == ["incoming/b"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a//b", "a/%2Fb"),
        ("/a", "%2Fa"),
        ("a/", "a/%2F"),
        ("a//", "a/%2F%2F"),
        ("/", "%2F%2F"),
        ("a/./b", "a/%2E/b"),
        ("..", "%2E%2E"),
        ("a/..b", "a/..b"),
    ],
)
def test_names_on_a_server_that_are_not_paths(name: str, key: str) -> None:
    assert s3._encode_name(name.encode()) == key
    assert s3._to_object_name(key) == name
    if "." not in key:
        with pytest.raises(SettingsError, match="not a valid key"):  # in a folder, it would lead out of the store
            require_valid_key(key)


@pytest.mark.parametrize(
    "prefix", ["/", "/etc/", "/etc/ss", "../", "..", "a/../b", "a//b", "./", "a\0", "%2Fetc/", "%2e%2e/"]
)
def test_a_listing_cannot_leave_the_store(store: Store, prefix: str) -> None:
    store.put("a/b", b"x")
    with pytest.raises(SettingsError, match="leads out of the store"):
        list(store.list(prefix))


def test_an_unchanged_object_is_removed_or_moved(store: Store) -> None:
    for to in (None, "quarantine/run/b.npz"):
        store.put("incoming/b.npz", b"x")
        (stat,) = store.list("incoming/")
        assert replace(store.stat("incoming/b.npz"), modified=stat.modified) == stat
        assert store.remove_if_unchanged(stat, to, hashlib.sha256(b"x").hexdigest())
        assert store.remove_if_unchanged(stat, to, hashlib.sha256(b"x").hexdigest())  # as after an interruption
        assert list_keys(store, "incoming/") == []
    assert store.get("quarantine/run/b.npz") == b"x"


@pytest.mark.parametrize("to", [None, "quarantine/b.npz"])
def test_a_changed_object_is_not_removed(store: Store, to: str | None) -> None:
    store.put("incoming/b.npz", b"old")
    (stat,) = store.list("incoming/")
    store.put("incoming/b.npz", b"newer")
    assert not store.remove_if_unchanged(stat, to)
    assert list_keys(store, "") == ["incoming/b.npz"]
    assert store.get("incoming/b.npz") == b"newer"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/./b",
        "a\nb",
        "a\\b",
        "a/",
        "a%00",
        "%41",
        "a/%2E%2E/%2E%2E/b",
        "%zz",
        "a%2Fb",
    ],
)
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises((SettingsError, AccessError), match=r"not a valid key|segment is not supported"):
        store.put(key, b"x")


def test_the_error_of_a_failed_write_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*file/store/k: Not a directory; free space, or give"):
        FolderStore(tmp_path / "file" / "store").put("k", b"x")


def test_a_failed_write_leaves_the_old_object_and_no_temporary_file(folder: FolderStore) -> None:
    folder.put("folder/k", b"old")
    (folder.root / "folder" / "occupied").mkdir()
    with pytest.raises(StoreError):
        folder.put("folder/occupied", b"new")
    assert folder.get("folder/k") == b"old"
    assert list((folder.root / ".scratch").iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["", "store", "ftp://host/x", "file://host/x", "http://a", "file:~/x", "file:///~/x", "file:x"]
)
def test_a_uri_that_does_not_name_a_store(uri: str) -> None:
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
    assert require_valid_key("runs/manual__2026-11-24T02:00:00+00:00/train.json").startswith("runs/")
