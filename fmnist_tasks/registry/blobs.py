"""Immutable content, addressed by its digest. A reference is `{"uri", "sha256", "bytes"}`; the URI is a store's key."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.store import Store

Reference = dict[str, Any]


def describe(key: str, data: bytes | BinaryIO) -> Reference:
    """The reference to content that lies, or is to lie, at the key."""
    if isinstance(data, bytes):
        return {"uri": key, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    data.seek(0)
    sha256 = hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"uri": key, "sha256": sha256, "bytes": data.seek(0, io.SEEK_END)}


def put_blob(store: Store, data: bytes | BinaryIO) -> Reference:
    """Store the content once under its SHA-256 and return the reference."""
    reference = describe("", data)
    reference["uri"] = f"blobs/sha256/{reference['sha256']}"
    stored = store.stat(reference["uri"])
    if stored is None or stored.bytes != reference["bytes"]:
        store.put(reference["uri"], data)
    return reference


def get_verified(store: Store, reference: Reference) -> bytes:
    """Bytes behind a reference; raises :class:`IntegrityError` before anyone uses a byte that was not written."""
    data = store.get(reference["uri"], reference["bytes"])
    _compare(reference, describe(reference["uri"], data))
    return data


def open_verified(store: Store, reference: Reference) -> BinaryIO:
    """A large object behind a reference as a file that the caller closes; raises like :func:`get_verified`."""
    file = store.open(reference["uri"], reference["bytes"])
    try:
        _compare(reference, describe(reference["uri"], file))
    except IntegrityError:
        file.close()
        raise
    file.seek(0)
    return file


def _compare(expected: Reference, found: Reference) -> None:
    if found != expected:
        raise IntegrityError(
            f"{expected['uri']}: found {found['bytes']} bytes with SHA-256 {found['sha256']}, expected "
            f"{expected['bytes']} bytes with {expected['sha256']}; delete it and clear the task that made it"
        )
