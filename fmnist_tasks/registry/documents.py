"""Sealed JSON documents: run records, manifests and log entries that notice any change to their bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.store import Store

_SEAL = "seal"


def digest_of(content: Any) -> str:
    """SHA-256 (hex) of a JSON value in its canonical form: sorted keys, no spaces; NaN raises ValueError."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(content: dict[str, Any]) -> bytes:
    """The document as readable JSON with the digest of its content under `seal`."""
    return _render({**content, _SEAL: digest_of(content)})


def unseal(data: bytes, key: str) -> dict[str, Any]:
    """The content of a sealed document; raises :class:`IntegrityError`, naming the key, if a byte was changed."""
    try:
        document = json.loads(data)
        content = {name: value for name, value in document.items() if name != _SEAL}
        intact = document[_SEAL] == digest_of(content) and data == _render(document)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(f"{key}: its bytes were changed after it was written, or are foreign; it is not used")
    return content


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Get and unseal one document."""
    return unseal(store.get(key), key)


def _render(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
