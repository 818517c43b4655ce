"""Untrusted files: only regular files are read, and only up to a size limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fmnist_tasks.errors import DataError, FmnistError


@contextmanager
def convert_errors(fault: str) -> Iterator[None]:
    """Convert any error, since the bytes are untrusted, into a :class:`DataError` with this text and the cause.

    Errors of this project, such as those of the store, stay as they are.
    """
    try:
        yield
    except FmnistError:
        raise
    except Exception as error:
        raise DataError(f"{fault} ({str(error)[:200] or type(error).__name__})") from error


@contextmanager
def name_file_in_errors(name: str) -> Iterator[None]:
    """Put the name of a file before the text of a :class:`DataError`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def read_file(file: Path | BinaryIO, name: str, max_bytes: int) -> bytes:
    """Return the content of a file; `name` is for messages.

    Raises :class:`DataError` if it has more than `max_bytes`, or if a path is not a regular file: a pipe would block.
    """
    if isinstance(file, Path):
        if file.exists() and not file.is_file():
            raise DataError(f"{name} is not a regular file")
        with file.open("rb") as stream:
            return read_file(stream, name, max_bytes)
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(f"{name} has more than the {max_bytes:,} bytes allowed")
    return content
