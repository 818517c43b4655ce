"""CSV files with one greyscale image in each row: a column with the label, and one for each pixel, as on Kaggle."""

from __future__ import annotations

import gzip
import io
import re
import warnings
from typing import BinaryIO, cast

import numpy as np

from fmnist_tasks.data.files import convert_errors
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import MAX_CLASS_NAME

_LABELS = {"label", "labels", "class", "target", "y"}
_PIXEL = re.compile(r"(?:pixel|px|p)?[ _-]?(\d+)|(\d+)x(\d+)", re.IGNORECASE)  # pixel0, 0, 1x1
_MAX_LINE_BYTES = 1 << 20  # 96 x 96 pixels have at most 46 kB
_CHUNK_ROWS = 4096
_MAX_ROW_BYTES, _MAX_VALUE_BYTES = 2_000, 16  # of a row on average: of the label, and of each pixel


def read_csv(file: BinaryIO, name: str, max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (N, pixels), and labels (N,), text; `name` is for messages, and `.gz` at its end counts.

    Raises :class:`DataError` if the columns are not as described, or a pixel is not a whole number from 0 to 255, or if
    the pixels have more than `max_bytes`.
    """
    import pandas as pd

    file = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if name.lower().endswith(".gz") else file
    bounded = _BoundedLines(file, name)
    lines = io.TextIOWrapper(io.BufferedReader(bounded), encoding="utf-8-sig", errors="replace")
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    fault = f"{name} is not a table in which each row has a value for each column, and pixels are whole numbers"
    with convert_errors(fault), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        header = [column.strip() for column in next(iter(lines), "").rstrip("\r\n").split(",")]
        label, pixels = _find_columns(header, name)
        dtypes = {index: (str if index == label else np.int64) for index in range(len(header))}
        options = {"header": None, "index_col": False, "names": range(len(header)), "dtype": dtypes}
        bounded.allow(limit := _CHUNK_ROWS * (_MAX_ROW_BYTES + _MAX_VALUE_BYTES * len(header)))
        for chunk in pd.read_csv(lines, chunksize=_CHUNK_ROWS, na_filter=False, **options):  # type: ignore[call-overload]
            bounded.allow(limit)
            values = chunk[pixels].to_numpy()
            if values.size and (values.min() < 0 or values.max() > 255):
                raise DataError(f"{name} has pixels from {values.min()} to {values.max()}, expected 0 to 255")
            texts = chunk[label].str.strip()
            if (longest := max(map(len, texts), default=0)) > MAX_CLASS_NAME:
                raise DataError(
                    f"{name} has a label of {longest:,} characters; names of classes have at most {MAX_CLASS_NAME}"
                )
            parts.append((values.astype(np.uint8), texts.to_numpy(str)))
            if sum(images.nbytes for images, _ in parts) > max_bytes:
                raise DataError(f"{name} has more than {max_bytes:,} bytes of pixels; split it into several files")
    if not sum(images.size for images, _ in parts):
        raise DataError(f"{name} has no images")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return images, labels


def _find_columns(header: list[str], name: str) -> tuple[int, list[int]]:
    """Return the position of the label and of the pixels, in order."""
    header = [column.strip('"') for column in header]
    labels = [index for index, column in enumerate(header) if column.lower() in _LABELS]
    if len(labels) != 1:
        raise DataError(
            f"{name}: its first line must name the columns, one of them `label`; it begins with "
            f"{', '.join(header)[:60]!r}"
        )
    pixels = [index for index in range(len(header)) if index != labels[0]]
    numbers = []
    for index in pixels:
        if not (match := _PIXEL.fullmatch(header[index])):
            raise DataError(f"{name}: the column {header[index][:40]!r} is neither a label nor a pixel; remove it")
        numbers.append(tuple(int(group) for group in match.groups() if group))
    if numbers != sorted(set(numbers)):
        raise DataError(f"{name}: its pixel columns are not in order; sort them: pixel0, pixel1, …")
    return labels[0], pixels


class _BoundedLines(io.RawIOBase):
    """A file that is read only as long as its lines and rows have a sensible length: the parser keeps them in memory.

    A row may have several lines, if its label is in quotation marks.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._length, self._allowed = file, name, 0, 2 * _MAX_LINE_BYTES

    def allow(self, size: int) -> None:
        """Allow so many more bytes to be read."""
        self._allowed = size

    def readable(self) -> bool:
        """The file can be read."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read the next bytes; raises :class:`DataError` if a line is too long."""
        content = self._file.read(min(len(buffer), _MAX_LINE_BYTES))
        last = content.rfind(b"\n")
        self._length = self._length + len(content) if last < 0 else len(content) - last - 1
        if self._length > _MAX_LINE_BYTES:
            raise DataError(
                f"{self._name} has a line of more than {_MAX_LINE_BYTES:,} bytes; a row of the largest images has fewer"
            )
        self._allowed -= len(content)
        if self._allowed < 0:
            raise DataError(
                f"{self._name} has many megabytes without a complete row; check it for empty lines, and for a "
                "quotation mark that is not closed"
            )
        buffer[: len(content)] = content
        return len(content)
