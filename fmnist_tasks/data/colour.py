"""Conversion of colour images to greyscale."""

from __future__ import annotations

import numpy as np

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow


def to_luminance(images: np.ndarray) -> np.ndarray:
    """Return images (…, 3), uint8, in greyscale, (…), uint8."""
    shades: np.ndarray = np.rint(images @ np.array(LUMINANCE, np.float32)).astype(np.uint8)
    return shades
