"""Sealed JSON documents: records, manifests and log entries, in which any changed byte is detected."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.store import Store
from fmnist_tasks.text import replace_surrogates

MAX_BYTES = 4 << 20  # of a stored document; parsed JSON can take twenty times its size in memory
_EMPTY_SEAL = b'\n  "seal": ""'  # of the document itself: nested fields have a deeper indentation


def compute_digest(content: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value in canonical form: sorted keys, no spaces; NaN raises ValueError."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(content: dict[str, Any]) -> bytes:
    """Return the document as readable JSON; its field `seal` is the SHA-256 of its bytes with an empty `seal`."""
    unsealed = _encode({**content, "seal": ""})
    return _require_size(unsealed.replace(_EMPTY_SEAL, _make_seal(hashlib.sha256(unsealed).hexdigest()), 1))


def unseal(data: bytes, key: str) -> dict[str, Any]:
    """Return the content of a sealed document; raises :class:`IntegrityError` with the key if a byte has changed."""
    try:
        content = json.loads(data)
        digest = content.pop("seal")
        unsealed = data.replace(_make_seal(digest), _EMPTY_SEAL, 1)
        intact = hashlib.sha256(unsealed).hexdigest() == digest
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(
            f"{key}: its bytes were changed after it was written, or another program wrote it; it is not used. Restore "
            "it from a backup or, below runs/, clear the task that wrote it"
        )
    return dict(content)


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Read and unseal the document at a key; raises like :func:`unseal`."""
    return unseal(store.get(key, MAX_BYTES), key)


def _make_seal(digest: str) -> bytes:
    return _EMPTY_SEAL[:-1] + digest.encode() + _EMPTY_SEAL[-1:]


def render_document(document: dict[str, Any]) -> bytes:
    """Return a JSON document as it is stored: indented, with sorted keys, and lone surrogates replaced.

    Raises ValueError for NaN, and :class:`DataError` for a document that is too large to be read again.
    """
    return _require_size(_encode(document))


def _encode(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return replace_surrogates(text).encode()


def _require_size(data: bytes) -> bytes:
    """Return the bytes of a document; raises :class:`DataError` if they are too many to be read again."""
    if len(data) > MAX_BYTES:
        raise DataError(
            f"a document of this run has {len(data):,} bytes, more than the limit of {MAX_BYTES:,}; submit fewer "
            "batches at once, or shorten their names"
        )
    return data
