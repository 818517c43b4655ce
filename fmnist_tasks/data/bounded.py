"""Files that anybody may have made are read up to a limit, and only if they are files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from fmnist_tasks.errors import DataError


def read_at_most(file: Path | BinaryIO, name: str, limit: int) -> bytes:
    """Content of the named file; raises :class:`DataError` above so many bytes, and for anything but a regular file.

    A pipe would be waited for.
    """
    if isinstance(file, Path):
        if file.exists() and not file.is_file():
            raise DataError(f"{name}: is no regular file")
        with file.open("rb") as opened:
            return read_at_most(opened, name, limit)
    content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{name}: has more than the {limit:,} bytes that are read")
    return content
