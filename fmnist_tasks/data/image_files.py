"""Untrusted image files (PNG, JPEG, …), converted to the size and format of the dataset."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.data.files import read_file
from fmnist_tasks.errors import DataError

_MAX_PIXELS = 4096 * 4096
MAX_BYTES = 1 << 26  # of a file; uncompressed, an image of `_MAX_PIXELS` has 48 MiB
_MAX_JPEG_SCANS = 100  # each costs a pass over all pixels; usual files have about ten
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # Pillow reads more, which nobody needs here


def read_image_file(file: Path | BinaryIO, name: str) -> np.ndarray:
    """Return the image as greyscale uint8 (28, 28); `name` is for messages.

    Raises :class:`DataError` if it is not an image or too large.
    """
    try:
        content = read_file(file, name, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, which does not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(f"{name}: has {image.width} x {image.height} pixels; the limit is {_MAX_PIXELS:,}")
                if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > _MAX_JPEG_SCANS:
                    raise DataError(f"{name}: is a JPEG with {scans:,} scans; the limit is {_MAX_JPEG_SCANS}")
                return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: has too many pixels ({error})") from error
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file") from error
    except UnidentifiedImageError as error:  # its text only names a Python object
        raise DataError(f"{name}: is not a readable image (supported: {', '.join(_FORMATS)})") from error
    except Exception as error:  # any, since the bytes are untrusted
        raise DataError(f"{name}: is not a readable image ({error or type(error).__name__})") from error
