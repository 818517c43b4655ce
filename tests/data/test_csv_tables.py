"""CSV tables of images, as on Kaggle: read without loss, or refused with the reason."""

from __future__ import annotations

import io
import itertools
import tracemalloc

import numpy as np
import pytest

from fmnist_tasks.data.csv_tables import read_csv
from fmnist_tasks.errors import DataError
from tests.support import synthetic

IMAGES, LABELS = synthetic.make_images(40, 3)


def encode_csv(labels: list[str], pixels: np.ndarray, header: list[str]) -> bytes:
    rows = [header, *([label, *map(str, row)] for label, row in zip(labels, pixels.tolist(), strict=True))]
    return "".join(",".join(row) + "\r\n" for row in rows).encode()


def read(content: bytes, max_bytes: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    return read_csv(io.BytesIO(content), "b.csv", max_bytes)


@pytest.mark.parametrize(
    "names",
    [
        [f"pixel{number}" for number in range(1, 785)],
        [f"{row}x{column}" for row in range(1, 29) for column in range(1, 29)],
        [str(number) for number in range(784)],
    ],
    ids=["pixel1", "1x1", "0"],
)
def test_the_usual_names_of_columns_are_read(names: list[str]) -> None:
    pixels = IMAGES.reshape(40, 784)
    images, labels = read(b"\xef\xbb\xbf" + encode_csv([str(label) for label in LABELS], pixels, ["label", *names]))
    assert np.array_equal(images, pixels)
    assert images.dtype == np.uint8
    assert labels.tolist() == [str(label) for label in LABELS]


def test_labels_may_be_names_and_be_anywhere() -> None:
    images, labels = read(b'"p0","Class","p1"\n3,bag,4\n5, coat ,6\n')
    assert (images.tolist(), labels.tolist()) == ([[3, 4], [5, 6]], ["bag", "coat"])


@pytest.mark.parametrize(
    ("text", "labels"),
    [("3.0 0", ["3.0", "0"]), ("007 1", ["007", "1"]), ("\u00b2 1", ["\u00b2", "1"]), ("1e0 1", ["1e0", "1"])],
)
def test_labels_are_text(text: str, labels: list[str]) -> None:
    rows = "".join(f"{label},1\n" for label in text.split())
    assert read(f"label,pixel0\n{rows}".encode())[1].tolist() == labels


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "its first line must name the columns, one of them `label`; it begins with ''"),
        (b"1,0,0\n2,0,0\n", "its first line must name the columns, one of them `label`; it begins with '1, 0, 0'"),
        (b"label,class,pixel0\n1,1,2\n", "its first line must name the columns, one of them `label`"),
        (b"label\n1\n", "has no images"),
        (b"label,pixel0\n", "has no images"),
        (b"label,id,pixel0\n1,2,3\n", "the column 'id' is neither a label nor a pixel; remove it"),
        (b"label,pixel1,pixel0\n1,2,3\n", "its pixel columns are not in order; sort them"),
        (b"label,pixel0,pixel0\n1,2,3\n", "its pixel columns are not in order; sort them"),
        (b"label,pixel0\n1,2,3\n", "is not a table in which each row has a value for each column"),
        (b"label,pixel0,pixel1\n1,2\n", "is not a table in which each row has a value for each column"),
        (
            b"label,pixel0\n1,0.5\n",
            "is not a table in which each row has a value for each column, and pixels are whole numbers",
        ),
        (
            b"label,pixel0\n1,x\n",
            "is not a table in which each row has a value for each column, and pixels are whole numbers",
        ),
        (
            b"label,pixel0\n1,\n",
            "is not a table in which each row has a value for each column, and pixels are whole numbers",
        ),
        (b"label,pixel0\n" + b"x" * 101 + b",1\n", "has a label of 101 characters; names of classes have at most 100"),
        (b"label,pixel0\n1,256\n", "has pixels from 256 to 256, expected 0 to 255"),
        (b"label,pixel0\n1,-1\n", "has pixels from -1 to -1, expected 0 to 255"),
        (b"label,pixel0\n1,99999999999999999999\n", "is not a table in which each row has a value for each column"),
        (b"\xff\xfe\x00l\x00a\x00", "its first line must name the columns"),
        (b"label,pixel0\n" + bytes(50), "is not a table in which each row has a value for each column"),
        (b"label,pixel0\n" + b"1,2\n" * 2000, "has more than 1,000 bytes of pixels; split it into several files"),
    ],
)
def test_another_table_is_refused_with_the_reason(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as refused:
        read(content, max_bytes=1000)
    assert str(refused.value).replace("b.csv: ", "b.csv ", 1).startswith(f"b.csv {fault}")


@pytest.mark.parametrize("start", [b"", b"label,pixel0\n1,", b"label,pixel0\n1,2\n" * 10])
def test_an_endless_line_takes_little_memory(start: bytes) -> None:
    file = io.BytesIO(start + b"1" * (64 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"b.csv has a line of more than 1,048,576 bytes"):
        read_csv(file, "b.csv", 1 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("line", [b"a" * 50 + b"\n", b"\n"])
def test_a_field_of_many_lines_is_not_read_to_its_end(line: bytes) -> None:
    """The parser keeps a field in memory, whatever the number of its lines."""
    rows = itertools.chain([b'label,pixel0\n"'], itertools.repeat(line * 100))

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert size > 5_100
            return next(rows)

    with pytest.raises(DataError, match="t has many megabytes without a complete row; check it for empty"):
        read_csv(Endless(), "t", 1 << 30)
