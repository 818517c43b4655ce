"""Pictures from files, brought into the form of the dataset."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.errors import DataError

_LARGEST = 4096 * 4096  # pixels


def read_picture(path: Path) -> np.ndarray:
    """The picture as grey uint8 (28, 28); raises :class:`DataError` if it is none, or too large."""
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if picture.width * picture.height > _LARGEST:
                raise DataError(f"{path}: {picture.width} x {picture.height} pixels are more than {_LARGEST:,}")
            return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombWarning, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: is no picture that can be read ({error})") from error
