"""IDX files: valid ones are read, damaged or inconsistent ones are refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fmnist_tasks.data.idx import gunzip, parse_idx
from fmnist_tasks.errors import DataError
from tests.support import synthetic

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_an_encoded_array_is_read_back() -> None:
    np.testing.assert_array_equal(parse_idx(synthetic.encode_idx(IMAGES), "f"), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"PK\x03\x04", "is not an IDX file"),
        (b"\0\0\x0d\x01" + bytes(8), "is not an IDX file"),  # floats
        (synthetic.encode_idx(IMAGES)[:9], "header is truncated"),
        (synthetic.encode_idx(IMAGES)[:-1], "the header declares 2 x 3 x 4, 40 bytes; the file has 39"),
        (synthetic.encode_idx(IMAGES) + b"x", "the file has 41"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "the file has 16"),  # a header that declares 2^96 bytes
    ],
)
def test_a_file_that_differs_from_its_header_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"batch.idx:? .*{message}"):
        parse_idx(content, "batch.idx")


def test_a_damaged_truncated_or_too_large_gzip_file_is_refused() -> None:
    packed = gzip.compress(b"x" * 1000)
    assert gunzip(packed, "f", 1000) == b"x" * 1000
    assert gunzip(b"plain", "f", 1000) == b"plain"
    with pytest.raises(DataError, match="f: the gzip file is damaged or truncated"):
        gunzip(packed[:-9], "f", 1000)
    with pytest.raises(DataError, match="damaged"):
        gunzip(packed[:15] + b"\xff" + packed[16:], "f", 1000)
    with pytest.raises(DataError, match="more than the expected 999 bytes"):
        gunzip(packed, "f", 999)
