"""Immutable content, addressed by its digest. A reference is `{"uri", "sha256", "bytes"}`; the URI is a store's key."""

from __future__ import annotations

import hashlib
from typing import Any

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.store import Store

Reference = dict[str, Any]


def put_blob(store: Store, data: bytes) -> Reference:
    """Store the bytes once under their SHA-256 and return the reference."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"blobs/sha256/{sha256}"
    stored = store.stat(key)
    if stored is None or stored.bytes != len(data):
        store.put(key, data)
    return {"uri": key, "sha256": sha256, "bytes": len(data)}


def get_verified(store: Store, reference: Reference) -> bytes:
    """Bytes behind a reference; raises :class:`IntegrityError` before anyone uses a byte that was not written."""
    data = store.get(reference["uri"])
    sha256 = hashlib.sha256(data).hexdigest()
    if len(data) != reference["bytes"] or sha256 != reference["sha256"]:
        raise IntegrityError(
            f"{reference['uri']}: found {len(data)} bytes with SHA-256 {sha256}, expected {reference['bytes']} bytes "
            f"with {reference['sha256']}; delete it and clear the task that made it"
        )
    return data
