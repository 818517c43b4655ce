"""Untrusted image files are read within limits of time and memory, or refused with a reason."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_tasks.data import image_files
from fmnist_tasks.data.image_files import _TRANSPOSITIONS, decode_image_file, read_image_file
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import ImageFormat
from tests.support import synthetic
from tests.support.hostile_images import make_png

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
    assert read_image_file(io.BytesIO(progressive), "p", synthetic.FORMAT).shape == (28, 28)
    for name, content in (("b", bomb), ("m", to_mpo(bomb))):
        with pytest.raises(DataError, match=rf"{name} is a JPEG with 20\d scans, more than 100; save it again as PNG"):
            read_image_file(io.BytesIO(content), name, synthetic.FORMAT)


def test_an_image_file_above_the_size_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", len(encode("bmp")))
    assert read_image_file(io.BytesIO(encode("bmp")), "b", synthetic.FORMAT).shape == (28, 28)
    with pytest.raises(DataError, match=r"b has more than the [0-9,]+ bytes allowed"):
        read_image_file(io.BytesIO(encode("bmp") + b"x"), "b", synthetic.FORMAT)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "is not a regular file"), (tmp_path / "gone", "there is no such file")):
        with pytest.raises(DataError, match=reason):
            read_image_file(path, path.name, synthetic.FORMAT)


BLACK = synthetic.FORMAT.model_copy(update={"background": 0})
BLACK_COLOUR = BLACK.model_copy(update={"channels": 3})
COLOUR = ImageFormat(height=28, width=28, channels=3, horizontal_flip=True, upright=False)
OBJECT = np.zeros((28, 28), np.uint8)
OBJECT[4:24, 0:28] = np.random.default_rng(1).integers(1, 256, (20, 28), np.uint8)


def save(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def make_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def cut_out(pixels: np.ndarray) -> Image.Image:
    """Make what is black transparent, with white under it, as editors leave it."""
    shades = np.where(pixels > 0, pixels, 255)
    return Image.fromarray(np.dstack([shades] * 3 + [np.where(pixels > 0, 255, 0)]).astype(np.uint8))


@pytest.mark.parametrize(
    "file",
    [
        save(Image.fromarray(OBJECT)),
        save(Image.fromarray(OBJECT), "TIFF"),
        save(Image.fromarray(OBJECT), "BMP"),
        save(Image.fromarray(OBJECT).convert("RGB")),
        save(Image.fromarray(OBJECT).convert("RGB"), "WEBP", lossless=True),
        save(Image.fromarray(OBJECT.astype(np.uint16) * 257)),
        save(Image.fromarray(OBJECT.astype(np.uint16) * 257), "TIFF"),
        save(Image.fromarray(OBJECT).convert("RGB").convert("CMYK"), "TIFF"),
        save(Image.fromarray(OBJECT).convert("P")),
        save(Image.fromarray(OBJECT).convert("LA")),
        save(cut_out(OBJECT)),
        save(cut_out(OBJECT), "TIFF"),
        save(Image.fromarray(OBJECT[4:24])),
        save(Image.fromarray(np.rot90(OBJECT)), exif=make_exif(6)),
        save(Image.fromarray(OBJECT[::-1, ::-1]), exif=make_exif(3)),
        save(Image.fromarray(OBJECT[:, ::-1]), exif=make_exif(2)),
        save(Image.fromarray(OBJECT), "GIF", save_all=True, append_images=[Image.fromarray(255 - OBJECT)]),
    ],
    ids=[
        *("plain", "tiff", "bmp", "rgb", "webp", "16-bit", "16-bit-tiff", "cmyk", "palette", "alpha", "cut-out"),
        *("cut-out-tiff", "cropped", "on-its-side", "upside-down", "mirrored", "animated"),
    ],
)
def test_a_picture_gives_the_same_image_in_every_encoding(file: io.BytesIO) -> None:
    file.seek(0)
    decoded = decode_image_file(file, "o", BLACK)
    assert np.array_equal(decoded.pixels, OBJECT)
    file.seek(0)
    assert np.array_equal(decode_image_file(file, "o", BLACK_COLOUR).pixels, np.dstack([OBJECT] * 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(OBJECT).convert("RGB")
    if orientation in _TRANSPOSITIONS:
        inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        stored = stored.transpose(inverse.get(orientation, _TRANSPOSITIONS[orientation]))
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image_file(save(stored, kind, exif=make_exif(orientation), **options), "o", BLACK)
    assert np.array_equal(decoded.pixels, OBJECT)


def test_a_transparent_shade_of_16_bits_shows_the_background() -> None:
    values = OBJECT.astype(np.uint16) * 257
    values[OBJECT == 0] = 40_000
    picture = save(Image.fromarray(values), transparency=40_000)
    assert np.array_equal(decode_image_file(picture, "t", BLACK).pixels, OBJECT)


def test_what_follows_a_jpeg_does_not_count_as_its_scans() -> None:
    """Phones append the video of a motion photo."""
    picture = save(Image.fromarray(OBJECT), "JPEG").getvalue()
    video = b"\xff\xda" * 500
    assert np.array_equal(
        decode_image_file(io.BytesIO(picture + video), "m", BLACK).pixels,
        decode_image_file(io.BytesIO(picture), "m", BLACK).pixels,
    )


def test_a_large_picture_gives_nearly_the_same_image() -> None:
    for kind in ("PNG", "JPEG"):
        decoded = decode_image_file(save(Image.fromarray(OBJECT).resize((4900, 4900), 0), kind), "large", BLACK)
        assert decoded.size == (4900, 4900)
        assert np.abs(decoded.pixels.astype(int) - OBJECT).mean() < 2


def test_without_a_background_a_picture_of_another_shape_is_cropped_at_its_centre() -> None:
    wide = np.zeros((28, 84), np.uint8)
    wide[:, 28:56] = OBJECT
    assert np.array_equal(decode_image_file(save(Image.fromarray(wide)), "w", synthetic.FORMAT).pixels, OBJECT)
    photo = np.random.default_rng(2).integers(0, 256, (28, 28, 3), np.uint8)
    assert np.array_equal(decode_image_file(save(Image.fromarray(photo)), "p", COLOUR).pixels, photo)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (save(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF").getvalue(), "has floating-point pixels"),
        (save(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), "TIFF").getvalue(), "has pixels with 32 bits"),
        (bytes(4) + b"ftypheic" + bytes(100), "is a HEIC image; save it as JPEG"),
        (make_png(20_000, 10_000, b""), "has too many pixels"),
    ],
    ids=["floating-point", "32 bits", "HEIC", "200 megapixels"],
)
def test_what_cannot_be_converted_is_refused_with_a_reason(content: bytes, fault: str) -> None:
    with pytest.raises(DataError, match=rf"^f:? {fault}"):
        decode_image_file(io.BytesIO(content), "f", BLACK)
