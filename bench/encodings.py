"""Encode images as users and programs save them, for `python -m bench.review`."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

_LARGE = 4_900  # pixels in each direction: 24 megapixels


def _save(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def _enlarge(pixels: np.ndarray, side: int) -> Image.Image:
    """Make each pixel a square of equal pixels."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _turn(pixels: np.ndarray) -> io.BytesIO:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return _save(Image.fromarray(np.rot90(pixels)), exif=exif)


def _cut_out(pixels: np.ndarray) -> io.BytesIO:
    """Make the black background transparent, with white under it."""
    shades = np.where(pixels > 0, pixels, 255)
    return _save(Image.fromarray(np.dstack([shades] * 3 + [np.where(pixels > 0, 255, 0)]).astype(np.uint8)))


def _crop(pixels: np.ndarray) -> io.BytesIO:
    """Keep the bounding box of the object."""
    rows, columns = np.nonzero(pixels)
    return _save(Image.fromarray(pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]))


# By name: each encodes an image, uint8 (28, 28), as a file.
ENCODINGS: dict[str, Callable[[np.ndarray], io.BytesIO]] = {
    "PNG": lambda pixels: _save(Image.fromarray(pixels)),
    "16-bit PNG": lambda pixels: _save(Image.fromarray(pixels.astype(np.uint16) * 257)),
    "CMYK TIFF": lambda pixels: _save(Image.fromarray(pixels).convert("RGB").convert("CMYK"), "TIFF"),
    "CMYK JPEG": lambda pixels: _save(_enlarge(pixels, 280).convert("RGB").convert("CMYK"), "JPEG", quality=90),
    "palette": lambda pixels: _save(Image.fromarray(pixels).convert("P")),
    "turned, with EXIF": _turn,
    "cut out": _cut_out,
    "cropped to the bounding box": _crop,
    "TIFF": lambda pixels: _save(Image.fromarray(pixels), "TIFF"),
    "16-bit TIFF": lambda pixels: _save(Image.fromarray(pixels.astype(np.uint16) * 257), "TIFF"),
    "lossless WebP": lambda pixels: _save(Image.fromarray(pixels).convert("RGB"), "WEBP", lossless=True),
}
LARGE_ENCODINGS: dict[str, Callable[[np.ndarray], io.BytesIO]] = {
    "24 megapixels, PNG": lambda pixels: _save(_enlarge(pixels, _LARGE), compress_level=1),
    "24 megapixels, JPEG": lambda pixels: _save(_enlarge(pixels, _LARGE), "JPEG", quality=90),
}
