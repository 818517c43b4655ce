"""Blobs: content is written once under its digest, and foreign bytes are never used."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

import pytest

from fmnist_tasks.errors import IntegrityError, MissingError
from fmnist_tasks.registry.blobs import compute_reference, get_verified, open_verified, put_blob
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.schemas.base import Reference

DATA = b"images and labels"
SHA256 = hashlib.sha256(DATA).hexdigest()
REFERENCE = Reference(uri=f"blobs/sha256/{SHA256}", sha256=SHA256, bytes=len(DATA))


class RecordingStore(FolderStore):
    """Records which keys were written and which files were opened."""

    written: list[str]
    opened: list[BinaryIO]

    def put(self, key: str, data: bytes | BinaryIO) -> None:
        self.written.append(key)
        super().put(key, data)

    def open(self, key: str, max_bytes: int | None = None) -> BinaryIO:
        self.opened.append(super().open(key, max_bytes))
        return self.opened[-1]


@pytest.fixture
def recording_store(store: FolderStore) -> RecordingStore:
    recording = RecordingStore(store.root)
    recording.written, recording.opened = [], []
    return recording


def test_bytes_and_a_file_of_them_have_the_same_reference() -> None:
    file = io.BytesIO(DATA)
    for position in (0, 5, len(DATA)):
        file.seek(position)
        assert compute_reference("some/key", file) == REFERENCE.model_copy(update={"uri": "some/key"})
    assert compute_reference("some/key", DATA) == REFERENCE.model_copy(update={"uri": "some/key"})


@pytest.mark.parametrize("content", [DATA, io.BytesIO(DATA)], ids=["bytes", "file"])
def test_a_blob_is_stored_under_its_digest_and_read_back_unchanged(
    store: FolderStore, content: bytes | BinaryIO
) -> None:
    assert put_blob(store, content) == REFERENCE
    assert store.get(REFERENCE.uri) == DATA
    assert get_verified(store, REFERENCE) == DATA


def test_a_blob_is_written_once(recording_store: RecordingStore) -> None:
    for _ in range(3):
        assert put_blob(recording_store, DATA) == REFERENCE
    assert recording_store.written == [REFERENCE.uri]


@pytest.mark.parametrize("damaged", [b"", DATA[:-1], DATA + b"!"])
def test_a_blob_of_another_size_is_written_again(store: FolderStore, damaged: bytes) -> None:
    store.put(REFERENCE.uri, damaged)
    put_blob(store, DATA)
    assert get_verified(store, REFERENCE) == DATA


@pytest.mark.parametrize("read", [get_verified, open_verified])
@pytest.mark.parametrize("foreign", [b"", DATA[:-1], b"Images and labels"])
def test_foreign_bytes_are_refused_by_key(store: FolderStore, read, foreign: bytes) -> None:
    store.put(REFERENCE.uri, foreign)
    actual = f"found {len(foreign)} bytes with SHA-256 {hashlib.sha256(foreign).hexdigest()}"
    expected = f"expected {len(DATA)} bytes with {SHA256}"
    with pytest.raises(IntegrityError) as error:
        read(store, REFERENCE)
    assert str(error.value) == (
        f"{REFERENCE.uri}: {actual}, {expected}; restore it from a backup or, below runs/ and blobs/, delete it and "
        "clear the task that wrote it"
    )


@pytest.mark.parametrize("read", [get_verified, open_verified])
def test_a_longer_object_is_not_read(store: FolderStore, read) -> None:
    store.put(REFERENCE.uri, DATA + b"!")
    with pytest.raises(IntegrityError, match=rf"{SHA256} has 18 bytes, expected at most 17"):
        read(store, REFERENCE)


@pytest.mark.parametrize("read", [get_verified, open_verified])
@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"bytes": len(DATA) + 1}])
def test_a_reference_to_other_bytes_is_refused(store: FolderStore, read, wrong: dict[str, object]) -> None:
    put_blob(store, DATA)
    with pytest.raises(IntegrityError, match=SHA256):
        read(store, REFERENCE.model_copy(update=wrong))


@pytest.mark.parametrize("read", [get_verified, open_verified])
def test_a_missing_blob_is_reported(store: FolderStore, read) -> None:
    with pytest.raises(MissingError, match=SHA256):
        read(store, REFERENCE)


def test_a_blob_is_opened_at_its_start(recording_store: RecordingStore) -> None:
    put_blob(recording_store, DATA)
    with open_verified(recording_store, REFERENCE) as file:
        assert file.read() == DATA


def test_a_refused_file_is_closed(recording_store: RecordingStore) -> None:
    recording_store.put(REFERENCE.uri, b"foreign")
    with pytest.raises(IntegrityError):
        open_verified(recording_store, REFERENCE)
    assert [file.closed for file in recording_store.opened] == [True]
