from __future__ import annotations

import pytest

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.documents import digest_of, seal, unseal

CONTENT = {"name": "Größe", "share": 0.1, "rows": [1, 2, None, True], "nested": {"seal": "", "a": 2}}


def test_a_sealed_document_comes_back_as_it_was() -> None:
    assert unseal(seal(CONTENT), "k") == CONTENT


FORMERLY = (
    b'{\n  "name": "Gr\\u00f6\\u00dfe",\n  "nested": {\n    "seal": ""\n  },\n  "seal": "%s",\n  "share": 0.1\n}\n'
) % digest_of({"name": "Größe", "nested": {"seal": ""}, "share": 0.1}).encode()


def test_a_document_of_the_first_versions_is_read() -> None:
    assert unseal(FORMERLY, "k") == {"name": "Größe", "nested": {"seal": ""}, "share": 0.1}


@pytest.mark.parametrize("data", [seal(CONTENT), FORMERLY], ids=["now", "formerly"])
def test_every_change_of_one_byte_is_noticed(data: bytes) -> None:
    for position in range(len(data)):
        for flip in (1, 0x20):
            changed = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            with pytest.raises(IntegrityError, match=r"^releases/v/manifest"):
                unseal(changed, "releases/v/manifest.json")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"seal": 1}', b"[" * 100_000])
def test_foreign_bytes_are_no_document(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"foreign"):
        unseal(data, "k")


def test_nan_cannot_be_sealed() -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        digest_of({"accuracy": float("nan")})
