"""The IDX format of the MNIST family: a magic number, one big-endian size per axis, then the bytes.

Source: http://yann.lecun.com/exdb/mnist (the section on file formats).
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np

from fmnist_tasks.errors import DataError

_UNSIGNED_BYTE = 0x08


def gunzip(data: bytes, name: str, limit: int) -> bytes:
    """Content of a gzip file, or the data itself if it is none; raises :class:`DataError` if damaged or over limit."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the gzip file is damaged or cut short ({error})") from error
    if len(content) > limit:
        raise DataError(f"{name}: holds more than the expected {limit:,} bytes")
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Array of uint8 with the shape that the header tells; raises :class:`DataError` if header and length disagree."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or not 1 <= content[3] <= 4:
        raise DataError(f"{name}: is no IDX file of unsigned bytes (it begins with {content[:4].hex(' ')!r})")
    axes = content[3]
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{name}: its header is cut short at {len(content)} bytes")
    shape = struct.unpack(f">{axes}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{name}: header says {' x '.join(map(str, shape))}, {expected:,} bytes; has {len(content):,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
