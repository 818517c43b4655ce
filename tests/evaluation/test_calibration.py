from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.evaluation.calibration import abstention, calibration
from fmnist_tasks.model.temperature import best_temperature


def predictions(count: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities (N, 3), and these probabilities with their logits multiplied by `sharpness`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (random.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    stated = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    return labels, stated


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_temperature_undoes_what_made_them_too_sure(sharpness: float) -> None:
    temperature, loss = best_temperature(*predictions(20_000, sharpness))
    assert temperature == pytest.approx(sharpness, rel=0.05)
    assert loss == pytest.approx(best_temperature(*predictions(20_000, 1.0))[1])


def test_the_error_is_small_for_true_probabilities_and_large_for_sharpened_ones() -> None:
    good, bad = (calibration(*predictions(20_000, sharpness)) for sharpness in (1.0, 2.0))
    assert good["error"] < 0.015 < 0.05 < bad["error"]
    for found in (good, bad):
        low, high = found["interval"]
        assert low < high
        assert sum(row["images"] for row in found["bins"]) == 20_000
    assert bad["interval"][0] > good["interval"][1]


def test_the_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    found = calibration(np.array([0, 1, 1, 1]), probabilities)
    assert found["error"] == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert [row["accuracy"] for row in found["bins"]] == [1.0, 0.5]
    assert calibration(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]))["error"] == 0


def test_a_model_that_may_abstain_answers_the_surest_images() -> None:
    confidence = np.linspace(0.99, 0.51, 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.zeros(100, int)
    labels[60:] = 1  # the 40 least sure are wrong
    found = abstention(labels, probabilities, 0.99)
    assert found["coverage"] == 0.6
    assert found["confidence"] == pytest.approx(confidence[59])
    assert found["curve"][-1] == [1.0, 0.6]
    assert abstention(np.ones(100, int), probabilities, 0.99)["coverage"] == 0.0
