"""Untrusted image files are read within limits of time and memory, or refused with a reason."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks.data import image_files
from fmnist_tasks.data.image_files import read_image_file
from fmnist_tasks.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


def encode(kind: str = "jpeg", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def to_mpo(jpeg: bytes) -> bytes:
    """Convert to a file of several images, as cameras write it: Pillow reports the format MPO instead of JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "mpo", save_all=True, append_images=[Image.fromarray(PIXELS)])
    header = buffer.getvalue()
    start = header.index(b"\xff\xe2")
    size = int.from_bytes(header[start + 2 : start + 4]) + 2
    assert Image.open(io.BytesIO(header)).format == "MPO"
    return jpeg[:2] + header[start : start + size] + jpeg[2:]


def test_a_jpeg_with_many_scans_is_refused_and_a_progressive_one_is_read() -> None:
    """Each scan, of 35 bytes, costs a pass over all pixels: a file of 5 MiB would take a quarter of an hour."""
    progressive = encode(progressive=True)
    last, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    bomb = progressive[:end] + progressive[last:end] * 200 + progressive[end:]
    assert read_image_file(io.BytesIO(progressive), "p").shape == (28, 28)
    for name, content in (("b", bomb), ("m", to_mpo(bomb))):
        with pytest.raises(DataError, match=rf"{name}: is a JPEG with 20\d scans; the limit is 100"):
            read_image_file(io.BytesIO(content), name)


def test_an_image_file_above_the_size_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", len(encode("bmp")))
    assert read_image_file(io.BytesIO(encode("bmp")), "b").shape == (28, 28)
    with pytest.raises(DataError, match=r"b: has more than [0-9,]+ bytes, the limit"):
        read_image_file(io.BytesIO(encode("bmp") + b"x"), "b")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "is not a regular file"), (tmp_path / "gone", "there is no such file")):
        with pytest.raises(DataError, match=reason):
            read_image_file(path, path.name)
