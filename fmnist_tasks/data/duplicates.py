"""Exact duplicates of images, within a sample and between samples."""

from __future__ import annotations

import hashlib
from collections.abc import Set

import numpy as np


def compute_digests(images: np.ndarray) -> list[bytes]:
    """Return a digest of each image; images are (N, H, W) of any dtype."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def find_duplicates(digests: list[bytes], known: Set[bytes]) -> np.ndarray:
    """Return which digests are known or repeat an earlier one; bool (N,)."""
    seen, is_duplicate = set(known), np.zeros(len(digests), bool)
    for index, digest in enumerate(digests):
        is_duplicate[index] = digest in seen
        seen.add(digest)
    return is_duplicate
