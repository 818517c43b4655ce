"""A stratified test split without near-duplicates in training."""

from __future__ import annotations

import numpy as np

from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

TEST_SHARE = 1 / 6


def choose_test_images(images: np.ndarray, labels: np.ndarray, share: float = TEST_SHARE, seed: int = 0) -> np.ndarray:
    """Return sorted positions of a test split: about this share of each class, and no near-duplicate of the others.

    Images are uint8 (N, H, W) or (N, H, W, 3), labels integers (N,). Near-duplicates stay together, in training if in
    doubt.
    """
    index = NearDuplicateIndex(images)
    neighbours = index.find(images, own=np.arange(len(images))).neighbours
    has_copy = np.zeros(len(images), bool)
    has_copy[neighbours >= 0] = True
    has_copy[neighbours[neighbours >= 0]] = True
    random, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        unique = random.permutation(members[~has_copy[members]])
        chosen.append(unique[: round(share * len(members))])
    return np.sort(np.concatenate(chosen))
