"""Sealed JSON documents: run records, manifests and log entries that notice any change to their bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.store import Store

MAX_BYTES = 4 << 20  # of a stored document: once parsed, JSON may take twenty times its size
_OPEN = b'\n  "seal": ""'  # of the document itself: what is nested is indented by more


def digest_of(content: Any) -> str:
    """SHA-256 (hex) of a JSON value in its canonical form: sorted keys, no spaces; NaN raises ValueError."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(content: dict[str, Any]) -> bytes:
    """The document as readable JSON with the SHA-256 of its bytes, as they are without it, under `seal`."""
    unsealed = render({**content, "seal": ""})
    return unsealed.replace(_OPEN, _closed(hashlib.sha256(unsealed).hexdigest()), 1)


def unseal(data: bytes, key: str) -> dict[str, Any]:
    """The content of a sealed document; raises :class:`IntegrityError`, naming the key, if a byte was changed."""
    try:
        content = json.loads(data)
        digest = content.pop("seal")
        unsealed = data.replace(_closed(digest), _OPEN, 1)
        intact = hashlib.sha256(unsealed).hexdigest() == digest
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(f"{key}: its bytes were changed after it was written, or are foreign; it is not used")
    return dict(content)


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Get and unseal one document."""
    return unseal(store.get(key, MAX_BYTES), key)


def _closed(digest: str) -> bytes:
    return _OPEN[:-1] + digest.encode() + _OPEN[-1:]


def render(document: dict[str, Any]) -> bytes:
    """A JSON document as it is stored: readable, keys in order.

    Raises ValueError for NaN, and :class:`DataError` for a document that would be too large to be read again.
    """
    text = (json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    if len(text) > MAX_BYTES:
        raise DataError(
            f"a document would have {len(text):,} bytes, more than the {MAX_BYTES:,} that are read; bring fewer "
            "batches at once, or shorten their names"
        )
    return text
