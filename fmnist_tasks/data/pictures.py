"""Pictures from files, brought into the form of the dataset."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmnist_tasks.data.bounded import read_at_most
from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.errors import DataError

_LARGEST = 4096 * 4096  # pixels
MAX_BYTES = 1 << 26  # of a file; a picture of so many pixels without compression has 48 MiB
_MOST_SCANS = 100  # of a JPEG: each costs a pass over all pixels, and a usual one has ten
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # of all that Pillow reads, those that people have


def read_picture(file: Path | BinaryIO, name: str) -> np.ndarray:
    """The named picture as grey uint8 (28, 28); raises :class:`DataError` if it is none, or too large."""
    try:
        content = read_at_most(file, name, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged remarks in a picture do not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                if picture.width * picture.height > _LARGEST:
                    raise DataError(f"{name}: {picture.width} x {picture.height} pixels are more than {_LARGEST:,}")
                if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > _MOST_SCANS:
                    raise DataError(f"{name}: is a JPEG of {scans:,} scans, more than the {_MOST_SCANS} that are read")
                return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: has more pixels than are read ({error})") from error
    except DataError:
        raise
    except UnidentifiedImageError as error:  # whose text is about an object of Python
        raise DataError(f"{name}: is no picture that can be read (none of {', '.join(_FORMATS)})") from error
    except Exception as error:  # whatever a decoder makes of bytes that anybody may have written
        raise DataError(f"{name}: is no picture that can be read ({error or type(error).__name__})") from error
