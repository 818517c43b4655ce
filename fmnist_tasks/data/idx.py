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


def gunzip(data: bytes, name: str, limit: int) -> bytes:
    """Content of a gzip file, or the data itself if it is none; raises :class:`DataError` if damaged or over limit."""
    if not data.startswith(_GZIP):
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
    return _read(io.BytesIO(content), name, len(content), len(content))


def read_idx(file: BinaryIO, name: str, limit: int) -> np.ndarray:
    """The same of a file that anybody may have made, plain or gzip, with at most `limit` bytes of pixels or labels.

    Memory is taken for what the header claims, once that is within the limit and, in a plain file, of the file's size.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    packed = file.read(2) == _GZIP
    file.seek(0)
    try:
        if packed:
            return _read(cast(BinaryIO, gzip.GzipFile(fileobj=file)), name, None, limit)
        return _read(file, name, size, limit)
    except DataError:
        raise
    except Exception as error:  # whatever a decoder makes of bytes that anybody may have written
        raise DataError(f"{name}: the gzip file is damaged or cut short ({error or type(error).__name__})") from error


def _read(file: BinaryIO, name: str, size: int | None, limit: int) -> np.ndarray:
    """The array of a file of that size, if it is known; one byte more than the header claims is too much."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != _UNSIGNED_BYTE or not 1 <= start[3] <= 4:
        raise DataError(f"{name}: is no IDX file of unsigned bytes (it begins with {start.hex(' ')!r})")
    axes = start[3]
    sizes = file.read(4 * axes)
    header = len(start) + 4 * axes
    if len(sizes) < 4 * axes:
        raise DataError(f"{name}: its header is cut short at {len(start) + len(sizes)} bytes")
    shape = struct.unpack(f">{axes}I", sizes)
    content = math.prod(shape)
    claim = f"{name}: header says {' x '.join(map(str, shape))}, {header + content:,} bytes"
    if size is not None and size != header + content:
        raise DataError(f"{claim}; has {size:,}")
    if content > limit:
        raise DataError(f"{claim}, more than the {limit:,} that are read; divide it into several files")
    flat = np.empty(content, np.uint8)
    read_fully(file, flat)
    if file.read(1):  # in a gzip file, this sees its check sum too
        raise DataError(f"{claim}; has more")
    return flat.reshape(shape)
