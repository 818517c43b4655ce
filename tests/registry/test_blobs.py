"""Blobs: content is written once under its digest, and no byte that was not written is ever used."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

import pytest

from fmnist_tasks.errors import IntegrityError, MissingError
from fmnist_tasks.registry.blobs import describe, get_verified, open_verified, put_blob
from fmnist_tasks.registry.local import FolderStore

DATA = b"images and labels"
SHA256 = hashlib.sha256(DATA).hexdigest()
REFERENCE = {"uri": f"blobs/sha256/{SHA256}", "sha256": SHA256, "bytes": len(DATA)}


class Watched(FolderStore):
    """Remembers which keys were written and which files were opened."""

    written: list[str]
    opened: list[BinaryIO]

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        self.written.append(key)
        super().put(key, data)

    def open(self, key: str, at_most: int | None = None) -> BinaryIO:
        self.opened.append(super().open(key, at_most))
        return self.opened[-1]


@pytest.fixture
def watched(store: FolderStore) -> Watched:
    new = Watched(store.root)
    new.written, new.opened = [], []
    return new


def test_bytes_and_a_file_of_them_have_the_same_reference() -> None:
    file = io.BytesIO(DATA)
    for position in (0, 5, len(DATA)):
        file.seek(position)
        assert describe("some/key", file) == {**REFERENCE, "uri": "some/key"}
    assert describe("some/key", DATA) == {**REFERENCE, "uri": "some/key"}


@pytest.mark.parametrize("content", [DATA, io.BytesIO(DATA)], ids=["bytes", "file"])
def test_a_blob_lies_under_its_digest_and_comes_back_as_it_was(store: FolderStore, content: bytes | BinaryIO) -> None:
    assert put_blob(store, content) == REFERENCE
    assert store.get(REFERENCE["uri"]) == DATA
    assert get_verified(store, REFERENCE) == DATA


def test_a_blob_is_written_once(watched: Watched) -> None:
    for _ in range(3):
        assert put_blob(watched, DATA) == REFERENCE
    assert watched.written == [REFERENCE["uri"]]


@pytest.mark.parametrize("part", [b"", DATA[:-1], DATA + b"!"])
def test_a_blob_of_another_size_is_written_again(store: FolderStore, part: bytes) -> None:
    store.put(REFERENCE["uri"], part)
    put_blob(store, DATA)
    assert get_verified(store, REFERENCE) == DATA


@pytest.mark.parametrize("read", [get_verified, open_verified])
@pytest.mark.parametrize("foreign", [b"", DATA[:-1], b"Images and labels"])
def test_bytes_that_were_not_written_are_refused_by_name(store: FolderStore, read, foreign: bytes) -> None:
    store.put(REFERENCE["uri"], foreign)
    found = f"found {len(foreign)} bytes with SHA-256 {hashlib.sha256(foreign).hexdigest()}"
    expected = f"expected {len(DATA)} bytes with {SHA256}"
    with pytest.raises(IntegrityError) as error:
        read(store, REFERENCE)
    assert str(error.value).startswith(f"{REFERENCE['uri']}: {found}, {expected}; delete it")


@pytest.mark.parametrize("read", [get_verified, open_verified])
def test_more_bytes_than_were_written_are_not_read(store: FolderStore, read) -> None:
    store.put(REFERENCE["uri"], DATA + b"!")
    with pytest.raises(IntegrityError, match=rf"{SHA256}: is 18 bytes, expected at most 17"):
        read(store, REFERENCE)


@pytest.mark.parametrize("read", [get_verified, open_verified])
@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": len(DATA) + 1}])
def test_a_reference_to_other_bytes_is_refused(store: FolderStore, read, wrong: dict[str, object]) -> None:
    put_blob(store, DATA)
    with pytest.raises(IntegrityError, match=SHA256):
        read(store, REFERENCE | wrong)


@pytest.mark.parametrize("read", [get_verified, open_verified])
def test_a_blob_that_is_not_there(store: FolderStore, read) -> None:
    with pytest.raises(MissingError, match=SHA256):
        read(store, REFERENCE)


def test_a_large_blob_is_a_file_that_is_read_from_its_start(watched: Watched) -> None:
    put_blob(watched, DATA)
    with open_verified(watched, REFERENCE) as file:
        assert file.read() == DATA


def test_a_refused_file_does_not_stay_open(watched: Watched) -> None:
    watched.put(REFERENCE["uri"], b"foreign")
    with pytest.raises(IntegrityError):
        open_verified(watched, REFERENCE)
    assert [file.closed for file in watched.opened] == [True]
