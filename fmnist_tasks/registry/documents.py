"""Sealed JSON documents: run records, manifests and log entries that notice any change to their bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.store import Store

_MAX_BYTES = 16 << 20  # of a document
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
        intact = hashlib.sha256(unsealed).hexdigest() == digest or _sealed_formerly(content, digest, data)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(f"{key}: its bytes were changed after it was written, or are foreign; it is not used")
    return dict(content)


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Get and unseal one document."""
    return unseal(store.get(key, _MAX_BYTES), key)


def _closed(digest: str) -> bytes:
    return _OPEN[:-1] + digest.encode() + _OPEN[-1:]


def _sealed_formerly(content: dict[str, Any], digest: str, data: bytes) -> bool:
    """Whether the digest is that of the content, as in documents of the first versions; ten times slower to tell."""
    return digest == digest_of(content) and data == render({**content, "seal": digest})


def render(document: dict[str, Any]) -> bytes:
    """A JSON document as it is stored: readable, keys in order; NaN raises ValueError."""
    return (json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
