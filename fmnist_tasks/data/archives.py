"""Zip archives from users: the directory is checked before it is parsed."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

from fmnist_tasks.data.files import convert_errors
from fmnist_tasks.errors import DataError


def open_archive(file: BinaryIO, name: str, kind: str, max_directory_bytes: int) -> zipfile.ZipFile:
    """Open a zip archive; `name` and `kind` (what it should be, such as "a zip file") are for messages.

    ZipFile creates an object of some hundred bytes for each entry of the directory, so its size is checked first.
    Raises :class:`DataError` if it has no directory, a larger one, or a damaged one.
    """
    with convert_errors(f"{name} is not {kind}, or its zip directory is damaged"):
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is None:
            raise DataError(f"{name} is not {kind}, or is truncated (no zip directory at its end)")
        if end[zipfile._ECD_SIZE] > max_directory_bytes:  # type: ignore[attr-defined]
            raise DataError(
                f"{name} is not {kind} that this project reads (its zip directory has more than "
                f"{max_directory_bytes:,} bytes)"
            )
        return zipfile.ZipFile(file)


def require_readable(member: zipfile.ZipInfo, name: str) -> None:
    """Raise :class:`DataError` if a member is encrypted, or compressed by a rare method."""
    subject = f"{name}: {member.filename[:80]!r}"
    if member.flag_bits & 1:
        raise DataError(f"{subject} is encrypted; save it without a password")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DataError(f"{subject} has an unsupported compression; use the usual one (deflate), or none")
