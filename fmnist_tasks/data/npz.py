"""Arrays from an `.npz` that anybody may have made: what it claims is checked before memory is taken for it.

An `.npz` is a zip archive of `.npy` files, each a header (dtype and shape) and the bytes. Only stored and deflated
members are read, a header must agree with the size of its member, and no pickled objects are loaded.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np

from fmnist_tasks.errors import DataError

_DIRECTORY = 1 << 20  # bytes; an archive of some ten thousand files
_HEADER = 1 << 16  # bytes of a member in which its header must lie
_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Header:
    """What an array claims to be."""

    dtype: np.dtype
    shape: tuple[int, ...]
    by_columns: bool  # Fortran's order
    offset: int  # of its first byte in the member

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def unpack(
    file: BinaryIO,
    name: str,
    *arrays: str,
    limit: int | None = None,
    check: Callable[..., None] = lambda *headers: None,
) -> tuple[np.ndarray, ...]:
    """The named arrays; raises :class:`DataError` if the file has not got them, is damaged, or is above the limit.

    `limit` is in bytes, of all arrays together; `check` is called with their headers before any of their bytes is read,
    and may raise.
    """
    try:
        with _open_archive(file, name) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if missing := [array for array in arrays if array not in members]:
                there = ", ".join(repr(member[:80]) for member in list(members)[:5]) or "nothing"
                raise DataError(
                    f"{name}: an .npz with the arrays {' and '.join(arrays)} is expected; "
                    f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in it, but {there}"
                )
            headers = [_read_header(archive, members[array], name) for array in arrays]
            check(*headers)
            if limit is not None and sum(header.bytes for header in headers) > limit:
                raise DataError(f"{name}: its arrays have more than {limit:,} bytes; divide it into several files")
            return tuple(
                _read_array(archive, members[array], header) for array, header in zip(arrays, headers, strict=True)
            )
    except DataError:
        raise
    except Exception as error:  # whatever a decoder makes of bytes that anybody may have written
        raise DataError(
            f"{name}: is no .npz with plain arrays, or is damaged or cut short ({error or type(error).__name__})"
        ) from error


def _open_archive(file: BinaryIO, name: str) -> zipfile.ZipFile:
    # The module makes an object of some hundred bytes for each entry of the directory, whose size it reads like this.
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end is None:
        raise DataError(f"{name}: is no .npz with plain arrays, or is cut short (no zip directory at its end)")
    if end[zipfile._ECD_SIZE] > _DIRECTORY:  # type: ignore[attr-defined]
        raise DataError(f"{name}: is no .npz with plain arrays (its zip directory has more than {_DIRECTORY:,} bytes)")
    return zipfile.ZipFile(file)


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Header:
    where = f"{name}: is no .npz with plain arrays: {member.filename[:80]!r}"
    if member.flag_bits & 1:
        raise DataError(f"{where} is encrypted; save it without a password")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DataError(f"{where} is compressed by another method than numpy's; save it with numpy.savez_compressed")
    with archive.open(member) as content:
        start = io.BytesIO(content.read(_HEADER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers of Python 2, which are read all the same
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise DataError(f"{where} is in format {'.'.join(map(str, version))}, which plain arrays are not")
        shape, by_columns, dtype = read(start)
    header = Header(dtype, shape, by_columns, start.tell())
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects; save an array of numbers")
    if any(size < 0 for size in shape) or header.offset + header.bytes != member.file_size:
        raise DataError(f"{where} claims {dtype} {shape}, but has {member.file_size - header.offset:,} bytes")
    return header


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header) -> np.ndarray:
    flat = np.empty(header.bytes, np.uint8)
    with archive.open(member) as content:
        content.read(header.offset)
        read_fully(content, flat)
        content.read(1)  # of an array without bytes: see the check sum all the same
    array = flat.view(header.dtype) if header.bytes else np.empty(math.prod(header.shape), header.dtype)
    return array.reshape(header.shape[::-1]).T if header.by_columns else array.reshape(header.shape)


def read_fully(file: IO[bytes] | BinaryIO, flat: np.ndarray) -> None:
    """Fill an array, uint8 (N,), with bytes of the file; raises EOFError if there are too few."""
    for start in range(0, len(flat), _PIECE):
        piece = file.read(min(_PIECE, len(flat) - start))
        if len(piece) < min(_PIECE, len(flat) - start):
            raise EOFError(f"ends after {start + len(piece):,} of {len(flat):,} bytes")
        flat[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
