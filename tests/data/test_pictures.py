"""Pictures from anybody are read in bounded time and memory, or refused with a reason."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks.data import pictures
from fmnist_tasks.data.pictures import read_picture
from fmnist_tasks.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


def encode(kind: str = "jpeg", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def as_mpo(jpeg: bytes) -> bytes:
    """The same picture as the first of several in a file, as cameras write them, which Pillow calls by another name."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "mpo", save_all=True, append_images=[Image.fromarray(PIXELS)])
    header = buffer.getvalue()
    start = header.index(b"\xff\xe2")
    size = int.from_bytes(header[start + 2 : start + 4]) + 2
    assert Image.open(io.BytesIO(header)).format == "MPO"
    return jpeg[:2] + header[start : start + size] + jpeg[2:]


def test_a_jpeg_of_many_scans_is_refused_and_a_progressive_one_read() -> None:
    """A scan of 35 bytes costs a pass over all pixels: a file of 5 MiB would take a quarter of an hour."""
    progressive = encode(progressive=True)
    last, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    bomb = progressive[:end] + progressive[last:end] * 200 + progressive[end:]
    assert read_picture(io.BytesIO(progressive), "p").shape == (28, 28)
    for name, content in (("b", bomb), ("m", as_mpo(bomb))):
        with pytest.raises(DataError, match=rf"{name}: is a JPEG of 20\d scans, more than the 100 that are read"):
            read_picture(io.BytesIO(content), name)


def test_a_file_with_more_bytes_than_a_picture_has_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", len(encode("bmp")))
    assert read_picture(io.BytesIO(encode("bmp")), "b").shape == (28, 28)
    with pytest.raises(DataError, match=r"b: has more than the [0-9,]+ bytes that are read"):
        read_picture(io.BytesIO(encode("bmp") + b"x"), "b")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "is no regular file"), (tmp_path / "gone", "No such file")):
        with pytest.raises(DataError, match=reason):
            read_picture(path, path.name)
