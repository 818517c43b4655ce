"""A stratified test split without near-duplicates in training."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

TEST_SHARE = 1 / 6


def choose_test_images(images: np.ndarray, labels: np.ndarray, share: float = TEST_SHARE, seed: int = 0) -> np.ndarray:
    """Return sorted positions of a test split: up to this share of each class, and no near-duplicate of the others.

    Images are uint8 (N, H, W) or (N, H, W, 3), labels integers (N,). Groups of near-duplicates are not divided.
    """
    groups = _group_near_duplicates(images)
    random, chosen = np.random.default_rng(seed), list[int]()
    _, first = np.unique(groups, return_index=True)
    sizes = np.bincount(groups)
    for label in np.unique(labels):
        room = round(share * int((labels == label).sum()))
        for group in random.permutation(np.flatnonzero(labels[first] == label)).tolist():
            if sizes[group] <= room:
                chosen.append(group)
                room -= sizes[group]
    is_test = np.isin(groups, chosen)
    # A group has the nearest neighbour of each image, not all its near-duplicates.
    while True:
        index = NearDuplicateIndex(images[~is_test])
        rows = np.flatnonzero(is_test)
        divided = rows[index.find(images[rows]).positions >= 0]
        if not len(divided):
            return rows
        is_test[np.isin(groups, groups[divided])] = False


def _group_near_duplicates(images: np.ndarray) -> np.ndarray:
    """Return the number of the group of each image, int (N,); groups are numbered without gaps."""
    own = np.arange(len(images))
    positions = NearDuplicateIndex(images).find(images, own=own).positions
    has_one = positions >= 0
    edges = coo_array((np.ones(has_one.sum(), bool), (own[has_one], positions[has_one])), shape=(len(own),) * 2)
    groups: np.ndarray = connected_components(edges, directed=False)[1]
    return groups
