"""Arrays from an untrusted `.npz`: declared sizes are validated before memory is allocated.

An `.npz` is a zip archive of `.npy` files, each a header (dtype and shape) and the bytes. Only stored and deflated
members are read, a header must agree with the size of its member, and pickled objects are refused.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np

from fmnist_tasks.data.archives import open_archive, require_readable
from fmnist_tasks.data.files import convert_errors
from fmnist_tasks.errors import DataError

_MAX_DIRECTORY_BYTES = 1 << 20  # some ten thousand files
_MAX_HEADER_BYTES = 1 << 16  # of a member
_KIND = "an .npz file with plain arrays"
_CHUNK_BYTES = 1 << 20  # read at once


@dataclass(frozen=True)
class Header:
    """The declared dtype and shape of an array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int  # of its first byte in the member

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(
    file: BinaryIO,
    name: str,
    *arrays: str,
    max_bytes: int | None = None,
    check: Callable[..., None] = lambda *headers: None,
) -> tuple[np.ndarray, ...]:
    """Return the named arrays; `name` is for messages.

    `max_bytes` limits the size of all arrays together. `check` receives their headers before any array is read, and
    may raise. Raises :class:`DataError` if the file lacks an array, is damaged or exceeds the limit.
    """
    with _report_faults(name), open_archive(file, name, _KIND, _MAX_DIRECTORY_BYTES) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if missing := [array for array in arrays if array not in members]:
            content = ", ".join(repr(member[:80]) for member in list(members)[:5]) or "nothing"
            raise DataError(
                f"{name}: expected an .npz file with the arrays {' and '.join(arrays)}; it contains {content}, "
                f"not {' or '.join(missing)}"
            )
        headers = [_read_header(archive, members[array], name) for array in arrays]
        check(*headers)
        if max_bytes is not None and sum(header.bytes for header in headers) > max_bytes:
            raise DataError(f"{name}: its arrays have more than {max_bytes:,} bytes; split it into several files")
        return tuple(
            _read_array(archive, members[array], header) for array, header in zip(arrays, headers, strict=True)
        )


def list_arrays(file: BinaryIO, name: str) -> list[str]:
    """Return the names of the arrays in a file; raises :class:`DataError` if it is not an .npz."""
    with _report_faults(name), open_archive(file, name, _KIND, _MAX_DIRECTORY_BYTES) as archive:
        return [member.filename.removesuffix(".npy") for member in archive.infolist()]


def _report_faults(name: str) -> AbstractContextManager[None]:
    return convert_errors(f"{name} is not {_KIND}, or is damaged or truncated")


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Header:
    subject = f"{name} is not an .npz file with plain arrays: {member.filename[:80]!r}"
    require_readable(member, name)
    with archive.open(member) as content:
        start = io.BytesIO(content.read(_MAX_HEADER_BYTES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers of Python 2, which are valid
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise DataError(f"{subject} has .npy version {'.'.join(map(str, version))}, expected 1.0 or 2.0")
        shape, fortran_order, dtype = read(start)
    header = Header(dtype, shape, fortran_order, start.tell())
    if dtype.hasobject:
        raise DataError(f"{subject} has Python objects; save an array of numbers")
    if any(size < 0 for size in shape) or header.offset + header.bytes != member.file_size:
        raise DataError(f"{subject} declares {dtype} {shape}, but has {member.file_size - header.offset:,} bytes")
    return header


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header) -> np.ndarray:
    flat = np.empty(header.bytes, np.uint8)
    with archive.open(member) as content:
        content.read(header.offset)
        read_fully(content, flat)
        content.read(1)  # verifies the checksum of an empty array too
    array = flat.view(header.dtype) if header.bytes else np.empty(math.prod(header.shape), header.dtype)
    return array.reshape(header.shape[::-1]).T if header.fortran_order else array.reshape(header.shape)


def read_fully(file: IO[bytes] | BinaryIO, flat: np.ndarray) -> None:
    """Fill an array, uint8 (N,), with bytes of the file; raises EOFError if the file has fewer."""
    for start in range(0, len(flat), _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, len(flat) - start)
        chunk = file.read(size)
        if len(chunk) < size:
            raise EOFError(f"ends after {start + len(chunk):,} of {len(flat):,} bytes")
        flat[start : start + size] = np.frombuffer(chunk, np.uint8)
