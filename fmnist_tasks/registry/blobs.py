"""Blobs: immutable content, stored under its digest."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference


def compute_reference(key: str, data: bytes | BinaryIO) -> Reference:
    """Return the reference to content at a key, whether it is stored yet or not."""
    if isinstance(data, bytes):
        return Reference(uri=key, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    data.seek(0)
    sha256 = hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]
    return Reference(uri=key, sha256=sha256, bytes=data.seek(0, io.SEEK_END))


def put_blob(store: Store, data: bytes | BinaryIO) -> Reference:
    """Store the content once under its SHA-256 and return the reference."""
    content = compute_reference("", data)
    reference = content.model_copy(update={"uri": f"blobs/sha256/{content.sha256}"})
    stored = store.stat(reference.uri)
    if stored is None or stored.bytes != reference.bytes:
        store.put(reference.uri, data)
    return reference


def get_verified(store: Store, reference: Reference) -> bytes:
    """Return the bytes of a reference; raises :class:`IntegrityError` if they are not those that were written."""
    data = store.get(reference.uri, reference.bytes)
    _require_same_digest(reference, compute_reference(reference.uri, data))
    return data


def open_verified(store: Store, reference: Reference) -> BinaryIO:
    """Return the bytes of a reference as a file, which the caller closes; raises like :func:`get_verified`."""
    file = store.open(reference.uri, reference.bytes)
    try:
        _require_same_digest(reference, compute_reference(reference.uri, file))
    except IntegrityError:
        file.close()
        raise
    file.seek(0)
    return file


def _require_same_digest(expected: Reference, actual: Reference) -> None:
    if actual != expected:
        raise IntegrityError(
            f"{expected.uri}: found {actual.bytes} bytes with SHA-256 {actual.sha256}, expected "
            f"{expected.bytes} bytes with {expected.sha256}; restore it from a backup or, below "
            "runs/ and blobs/, delete it and clear the task that wrote it"
        )
