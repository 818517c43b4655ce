"""The probe separates classes of features, and its weights apply to unscaled features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fmnist_tasks.model.ood.probe import Weights, fit_probe

_SCALES = np.linspace(40, 200, 10)


def make_shells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 10) on ten different scales, and which are near the centre, (N,), bool; not linearly separable."""
    points = np.random.default_rng(seed).normal(size=(count, 10))
    near = np.linalg.norm(points, axis=1) < 3
    return (points * _SCALES + 7 * _SCALES).astype(np.float32), near


def compute_logits(weights: list[Weights], features: np.ndarray) -> np.ndarray:
    (kernel, bias), (last, offset) = weights
    return (np.maximum(features @ kernel + bias, 0) @ last + offset)[:, 0]


@pytest.mark.integration
def test_a_probe_separates_classes_that_are_not_linearly_separable() -> None:
    weights = fit_probe(*make_shells(40_000, 0), hidden=64)
    features, near = make_shells(2_000, 1)
    accuracy = ((compute_logits(weights, features) > 0) == near).mean()
    assert accuracy > 0.85
    assert LogisticRegression().fit(features / _SCALES, near).score(features / _SCALES, near) < 0.6
    repeated = fit_probe(*make_shells(40_000, 0), hidden=64)
    for layer, repeated_layer in zip(weights, repeated, strict=True):
        for a, b in zip(layer, repeated_layer, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_a_nearly_constant_feature_does_not_dominate() -> None:
    features = np.random.default_rng(0).normal(size=(1_000, 10)).astype(np.float32)
    features[:, 0] *= 1e-5
    weights = fit_probe(features.copy(), features[:, 1] > 0, hidden=8)
    outliers = features[:100].copy()
    outliers[:, 0] = 1  # a hundred thousand times the standard deviation seen in training
    assert np.abs(compute_logits(weights, outliers) - compute_logits(weights, features[:100])).max() < 5
