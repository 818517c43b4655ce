"""The IDX format of the MNIST family: a magic number, one big-endian size per axis, then the bytes.

Source: http://yann.lecun.com/exdb/mnist (the section on file formats).
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from typing import BinaryIO, cast

import numpy as np

from fmnist_tasks.data.npz import read_fully
from fmnist_tasks.errors import DataError

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"


def gunzip(data: bytes, name: str, max_bytes: int) -> bytes:
    """Return the content of a gzip file, or other data unchanged.

    Raises :class:`DataError` if the file is damaged, or if its content has more than `max_bytes`.
    """
    if not data.startswith(_GZIP):
        return data
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the gzip file is damaged or truncated ({error})") from error
    if len(content) > max_bytes:
        raise DataError(f"{name} has more than the expected {max_bytes:,} bytes")
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Return the array, uint8; raises :class:`DataError` if header and length disagree."""
    return _read(io.BytesIO(content), name, len(content), len(content))


def read_idx(file: BinaryIO, name: str, max_bytes: int) -> np.ndarray:
    """Return the array, uint8, of an untrusted file, plain or gzip, with at most `max_bytes` of pixels or labels.

    Memory is allocated once the size in the header is within the limit and, for a plain file, that of the file.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_gzip = file.read(2) == _GZIP
    file.seek(0)
    try:
        if is_gzip:
            return _read(cast(BinaryIO, gzip.GzipFile(fileobj=file)), name, None, max_bytes)
        return _read(file, name, size, max_bytes)
    except DataError:
        raise
    except Exception as error:  # any, since the bytes are untrusted
        raise DataError(f"{name}: the gzip file is damaged or truncated ({error or type(error).__name__})") from error


def _read(file: BinaryIO, name: str, size: int | None, max_bytes: int) -> np.ndarray:
    """Return the array of a file of that size, if known; every byte beyond the header's size is an error."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != _UNSIGNED_BYTE or not 1 <= start[3] <= 4:
        raise DataError(f"{name} is not an IDX file of unsigned bytes (it begins with {start.hex(' ')!r})")
    axes = start[3]
    sizes = file.read(4 * axes)
    header = len(start) + 4 * axes
    if len(sizes) < 4 * axes:
        raise DataError(f"{name}: its header is truncated after {len(start) + len(sizes)} bytes")
    shape = struct.unpack(f">{axes}I", sizes)
    content = math.prod(shape)
    claim = f"{name}: the header declares {' x '.join(map(str, shape))}, {header + content:,} bytes"
    if size is not None and size != header + content:
        raise DataError(f"{claim}; the file has {size:,}")
    if content > max_bytes:
        raise DataError(f"{claim}, more than the limit of {max_bytes:,}; split it into several files")
    flat = np.empty(content, np.uint8)
    read_fully(file, flat)
    if file.read(1):  # for gzip, this also verifies the checksum
        raise DataError(f"{claim}; the file has more")
    return flat.reshape(shape)
