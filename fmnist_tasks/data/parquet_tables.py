"""Parquet files with one encoded image in each row, in the layout of Hugging Face: columns `image` and `label`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmnist_tasks.child_process import ChildError, run_child
from fmnist_tasks.data.class_folders import EncodedImage
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import Split, normalize_class_name
from fmnist_tasks.text import make_printable

_MAX_HEADER = 64 << 20  # bytes
_TIMEOUT = 600  # seconds


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    labels: list[int | str | None] = []
    names: list[str] = Field(default=[], max_length=256)
    sizes: list[int] = []
    fault: str = ""


def read_parquet(file: BinaryIO, name: str, split: Split | None = None) -> list[EncodedImage]:
    """Return the images of a file, each with the name of its class; `name` is for messages.

    An image that the file lacks is empty, and cannot be decoded. Raises :class:`DataError` if the file has no such
    columns, is damaged, or exceeds the limits of the process that reads it.
    """
    from fmnist_tasks.data import parquet_structure

    with TemporaryFile() as copied, TemporaryFile() as output:
        shutil.copyfileobj(file, copied)  # a file in memory has no descriptor for the child
        try:
            run_child(Path(parquet_structure.__file__), copied, output, parquet_structure.LIMITS, _TIMEOUT)
        except ChildError as error:
            raise DataError(f"{name}: {error}") from error
        header = _read_header(output, name)
        images = [output.read(size) for size in header.sizes]
    return [
        EncodedImage(
            f"{name}, row {row + 1:,}",
            split,
            _name_class(label, header.names, name),
            partial(bytes, content),
            is_label_index=isinstance(label, int) and not header.names,
        )
        for row, (label, content) in enumerate(zip(header.labels, images, strict=True))
    ]


def _read_header(output: BinaryIO, name: str) -> _Header:
    size = int.from_bytes(output.read(8), "little")
    if size > _MAX_HEADER:
        raise DataError(f"{name} has too many rows; split it into several files")
    try:
        header = _Header.model_validate_json(output.read(size))
    except ValidationError as error:
        raise DataError(f"{name} cannot be read: the reading process returned invalid output") from error
    if header.fault:
        raise DataError(f"{name}: {make_printable(header.fault[:300])}")
    if len(header.labels) != len(header.sizes):
        raise DataError(f"{name}: {len(header.sizes):,} images but {len(header.labels):,} labels")
    if not header.labels:
        raise DataError(f"{name} has no rows")
    return header


def _name_class(label: int | str | None, names: list[str], name: str) -> str:
    if label is None:
        raise DataError(f"{name} has a row without a label")
    if isinstance(label, int) and names:
        if not 0 <= label < len(names):
            raise DataError(f"{name} has the label {label}, but names {len(names)} classes")
        return normalize_class_name(names[label])
    if isinstance(label, int) and label < 0:
        raise DataError(f"{name} has the label {label}; class indices must start at 0")
    return normalize_class_name(str(label))
