"""Sealed documents: every change is detected."""

from __future__ import annotations

import hashlib
import math

import pytest

from fmnist_tasks.errors import DataError, IntegrityError
from fmnist_tasks.registry.documents import MAX_BYTES, compute_digest, read_document, render_document, seal, unseal
from fmnist_tasks.registry.folder import FolderStore

CONTENT = {"name": "Größe", "share": 0.1, "rows": [1, 2, None, True], "nested": {"seal": "", "a": 2}}


def test_a_sealed_document_is_read_back_unchanged() -> None:
    assert unseal(seal(CONTENT), "k") == CONTENT


def test_every_change_of_one_byte_is_detected() -> None:
    data = seal(CONTENT)
    for position in range(len(data)):
        for flip in (1, 0x20):
            changed = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            with pytest.raises(IntegrityError, match=r"^releases/v/manifest"):
                unseal(changed, "releases/v/manifest.json")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"seal": 1}', b"[" * 100_000])
def test_foreign_bytes_are_not_a_document(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"another program wrote it"):
        unseal(data, "k")


@pytest.mark.parametrize("write", [compute_digest, seal])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_never_written(write, value: float) -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write({"accuracy": value})


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    expected = hashlib.sha256(b'{"a":[1,2],"b":{"c":"\\u00fc","d":null}}').hexdigest()
    assert compute_digest({"a": [1, 2], "b": {"c": "ü", "d": None}}) == expected
    assert compute_digest({"b": {"d": None, "c": "ü"}, "a": [1, 2]}) == expected
    assert compute_digest({"a": [2, 1], "b": {"c": "ü", "d": None}}) != expected


def test_the_seal_is_the_digest_of_the_bytes_with_an_empty_seal() -> None:
    empty = b'{\n  "b": 1,\n  "seal": ""\n}\n'
    assert seal({"b": 1}) == empty.replace(b'""', b'"%s"' % hashlib.sha256(empty).hexdigest().encode())


def test_stored_documents_have_sorted_fields_and_readable_letters() -> None:
    assert render_document({"b": "Größe", "a": {"d": 1, "c": 2}}).decode() == (
        '{\n  "a": {\n    "c": 2,\n    "d": 1\n  },\n  "b": "Größe"\n}\n'
    )


def test_a_document_has_one_seal() -> None:
    """JSON parsers ignore a second seal, but this project never writes one."""
    empty = b'{\n  "b": 1,\n  "seal": "",\n  "seal": ""\n}\n'
    sealed_twice = empty.replace(b'""', b'"%s"' % hashlib.sha256(empty).hexdigest().encode())
    with pytest.raises(IntegrityError):
        unseal(sealed_twice, "k")


def test_a_document_is_read_from_the_store_and_a_changed_one_is_named(store: FolderStore) -> None:
    store.put("runs/r/train.json", seal(CONTENT))
    assert read_document(store, "runs/r/train.json") == CONTENT
    store.put("runs/r/train.json", seal(CONTENT).replace(b"0.1", b"0.2"))
    message = (
        "runs/r/train.json: its bytes were changed after it was written, or another program wrote it; it is not used. "
        "Restore it from a backup or, below runs/, clear the task that wrote it"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        read_document(store, "runs/r/train.json")
    store.put("runs/r/train.json", b" " * (MAX_BYTES + 1))
    with pytest.raises(IntegrityError, match=r"train.json has 4,194,305 bytes, expected at most 4,194,304"):
        read_document(store, "runs/r/train.json")


def test_a_document_too_large_to_be_read_is_not_written(store: FolderStore) -> None:
    largest = MAX_BYTES - len(seal({"names": ""}))
    store.put("d.json", seal({"names": "x" * largest}))
    assert len(read_document(store, "d.json")["names"]) == largest
    message = (
        "a document of this run has 4,194,305 bytes, more than the limit of 4,194,304; submit fewer batches at once, "
        "or shorten their names"
    )
    with pytest.raises(DataError, match=rf"^{message}$"):
        seal({"names": "x" * (largest + 1)})


def test_text_that_is_not_unicode_is_replaced() -> None:
    """Python represents a file name that is not valid UTF-8 with lone surrogates."""
    assert unseal(seal({"file": "a\udc80.npz"}), "k") == {"file": "a?.npz"}
