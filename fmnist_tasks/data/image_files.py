"""Untrusted image files (PNG, JPEG, …), converted to the size and format of the dataset.

The same picture gives the same image in every encoding: 16-bit values are scaled to 8 bits, the orientation in EXIF is
applied, and transparent areas show the background. A picture of another shape is padded to the dataset's shape with
the background, as the images of Fashion-MNIST were; without a background, it is cropped at its centre.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_tasks.data.files import read_file
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import ImageFormat

_MAX_PIXELS = 50_000_000  # of cameras of phones; takes up to 950 MiB to decode
MAX_BYTES = 1 << 26  # of a file
_MAX_JPEG_SCANS = 100  # each costs a pass over all pixels; usual files have about ten
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")  # Pillow reads more, which nobody needs here
_HEIC = {b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"}  # how such files begin, after four bytes
_HALF, _MOST_EDGES = 127.5, 0.8  # shade, and share of the pixels at the edges of an image
_ORIENTATION = 0x0112  # EXIF's tag
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a stuffed byte, fill byte or restart marker
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(DataError):
    """An image file that cannot be read. `pixels` is the number that it claims to have, since they take time; or 0."""

    def __init__(self, message: str, pixels: int = 0) -> None:
        super().__init__(message)
        self.pixels = pixels


@dataclass(frozen=True)
class DecodedImage:
    """An image in the format of the dataset, and what the file had."""

    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3)
    size: tuple[int, int]  # width and height of the file
    mode: str  # Pillow's name of the colour mode: L, RGB, RGBA, P, I;16, …

    def has_format(self, image_format: ImageFormat) -> bool:
        """Whether the file had the size and colour mode of the dataset."""
        size, mode = (image_format.width, image_format.height), "L" if image_format.channels == 1 else "RGB"
        return (self.size, self.mode) == (size, mode)


def read_image_file(file: Path | BinaryIO, name: str, image_format: ImageFormat) -> np.ndarray:
    """Return the pixels of :func:`decode_image_file`."""
    return decode_image_file(file, name, image_format).pixels


def decode_image_file(file: Path | BinaryIO, name: str, image_format: ImageFormat) -> DecodedImage:
    """Return the image in the format of the dataset; `name` is for messages. Of an animation, it is the first picture.

    Raises :class:`UnreadableImageError` if the file is not an image or too large.
    """
    pixels = 0
    try:
        content = read_file(file, name, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, and large pictures within the limit
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(
                        f"{name} has {image.width} × {image.height} pixels, more than {_MAX_PIXELS:,}; make it smaller"
                    )
                if content.startswith(b"\xff\xd8") and (scans := _count_scans(content)) > _MAX_JPEG_SCANS:
                    raise DataError(
                        f"{name} is a JPEG with {scans:,} scans, more than {_MAX_JPEG_SCANS}; save it again as PNG"
                    )
                size, mode, pixels = image.size, image.mode, image.width * image.height
                return DecodedImage(_convert(image, name, image_format), size, mode)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{name} has too many pixels ({error}); make it smaller") from error
    except DataError as error:
        raise UnreadableImageError(str(error), pixels) from error
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: there is no such file") from error
    except UnidentifiedImageError as error:  # its text only names a Python object
        kind = "is a HEIC image; save it as JPEG" if content[4:12] in _HEIC else "is not a readable image"
        raise UnreadableImageError(f"{name} {kind} (supported: {', '.join(_FORMATS)})") from error
    except Exception as error:  # any, since the bytes are untrusted
        raise UnreadableImageError(
            f"{name} is not a readable image ({error or type(error).__name__})", pixels
        ) from error


def looks_inverted(image: np.ndarray, image_format: ImageFormat) -> bool:
    """Whether an image, uint8 (H, W) or (H, W, 3), seems to be a negative: its edges are unlike the background.

    The background of a dataset is black or white, if it has one.
    """
    if image_format.background is None:
        return False
    edges = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).astype(np.float32)
    is_bright = bool(np.median(edges) > _HALF) and bool((edges > _HALF).mean() > _MOST_EDGES)
    is_dark = bool(np.median(edges) < _HALF) and bool((edges < _HALF).mean() > _MOST_EDGES)
    return is_bright if image_format.background < _HALF else is_dark


def _count_scans(content: bytes) -> int:
    """Return the number of scans of a JPEG, up to its end: the video of a motion photo may follow it."""
    position, scans = 2, 0
    while found := _JPEG_MARKER.search(content, position):
        marker, position = found[0][1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        position += int.from_bytes(content[position : position + 2], "big")
    return scans


def _convert(image: Image.Image, name: str, image_format: ImageFormat) -> np.ndarray:
    image.load()  # which applies the orientation of a TIFF
    orientation = image.getexif().get(_ORIENTATION, 1)
    size = (image_format.width, image_format.height)
    if orientation >= 5:  # the picture is stored on its side
        size = size[::-1]
    picture = _to_eight_bits(image, name)
    is_larger = min(picture.width / size[0], picture.height / size[1]) > 1
    method = Image.Resampling.BOX if is_larger else Image.Resampling.LANCZOS  # averages, or interpolates
    shade = image_format.background or 0
    if image_format.background is None:
        picture = ImageOps.fit(picture, size, method)
    else:
        colour = 0 if picture.mode == "RGBa" else (shade,) * len(picture.getbands())
        picture = ImageOps.pad(picture, size, method, color=colour)
    if picture.mode == "RGBa":
        background = Image.new("RGBA", size, (shade, shade, shade, 255))
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
    picture = picture.convert("L" if image_format.channels == 1 else "RGB")
    if orientation in _TRANSPOSITIONS:
        picture = picture.transpose(_TRANSPOSITIONS[orientation])
    return np.asarray(picture)


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return the picture in mode L, RGB or, if parts are transparent, RGBa (premultiplied, so it can be averaged)."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
        if isinstance(transparent := image.info.get("transparency"), int):
            opacity = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
            return Image.merge("LA", (picture, opacity)).convert("RGBA").convert("RGBa")
        return picture
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"{name} has pixels with 32 bits; save it with 8 or 16")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{name} has floating-point pixels; save it with 8 or 16 bits")
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        return image.convert("RGBA").convert("RGBa")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")
