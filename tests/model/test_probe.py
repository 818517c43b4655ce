"""The probe tells kinds of features apart, and its weights take features as they come."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fmnist_tasks.model import probe

_SCALES = np.linspace(40, 200, 10)


def shells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of ten features on scales of their own, and which lie near the centre: no straight line tells."""
    points = np.random.default_rng(seed).normal(size=(count, 10))
    near = np.linalg.norm(points, axis=1) < 3
    return (points * _SCALES + 7 * _SCALES).astype(np.float32), near


def logits(weights: list[probe.Weights], features: np.ndarray) -> np.ndarray:
    (kernel, bias), (last, offset) = weights
    return (np.maximum(features @ kernel + bias, 0) @ last + offset)[:, 0]


@pytest.mark.integration
def test_it_tells_what_no_straight_line_could() -> None:
    weights = probe.fitted(*shells(40_000, 0), hidden=64)
    features, near = shells(2_000, 1)
    found = ((logits(weights, features) > 0) == near).mean()
    assert found > 0.85
    assert LogisticRegression().fit(features / _SCALES, near).score(features / _SCALES, near) < 0.6
    again = probe.fitted(*shells(40_000, 0), hidden=64)
    for one, other in zip(weights, again, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_a_feature_that_hardly_varied_does_not_decide_alone() -> None:
    features = np.random.default_rng(0).normal(size=(1_000, 10)).astype(np.float32)
    features[:, 0] *= 1e-5
    weights = probe.fitted(features.copy(), features[:, 1] > 0, hidden=8)
    strange = features[:100].copy()
    strange[:, 0] = 1  # a hundred thousand times as far out as any before
    assert np.abs(logits(weights, strange) - logits(weights, features[:100])).max() < 5
