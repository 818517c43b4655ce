"""Images that come twice, byte for byte: inside a sample, and in training as well as in the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Set

import numpy as np


def digests(images: np.ndarray) -> list[bytes]:
    """A digest of each image (N, H, W)."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def repeated(found: list[bytes], known: Set[bytes]) -> np.ndarray:
    """Which images, by their digests, are known or came before in their own list; bool (N,)."""
    seen, again = set(known), np.zeros(len(found), bool)
    for index, digest in enumerate(found):
        again[index] = digest in seen
        seen.add(digest)
    return again
