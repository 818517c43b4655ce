from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.evaluation.calibration import abstention, calibration
from fmnist_tasks.model.temperature import best_temperature
from fmnist_tasks.significance import share_interval


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
    assert found["bins"] == [
        {"images": 2, "confidence": pytest.approx(0.6), "accuracy": 1.0},
        {"images": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5},
    ]
    assert calibration(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]))["error"] == 0


def test_a_certain_answer_is_in_the_last_bin_with_those_almost_certain() -> None:
    confidence = np.array([1.0, 0.935, 0.93])  # the last of 15 bins begins at 14/15
    found = calibration(np.zeros(3, int), np.stack([confidence, 1 - confidence], axis=1))
    assert [(row["images"], row["confidence"]) for row in found["bins"]] == [
        (1, pytest.approx(0.93)),
        (2, pytest.approx(0.9675)),
    ]


def test_the_interval_is_that_of_a_share_where_all_answers_are_certain() -> None:
    labels, probabilities = np.arange(1000) % 10 == 0, np.tile([1.0, 0.0], (1000, 1))
    found = calibration(labels.astype(int), probabilities)
    assert found["error"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx(share_interval(100, 1000), abs=0.004)


def test_the_interval_is_the_same_every_time() -> None:
    labels, probabilities = predictions(200, 2.0)
    assert calibration(labels, probabilities)["interval"] == calibration(labels, probabilities)["interval"]
    assert calibration(labels, probabilities)["interval"] != calibration(labels, probabilities, seed=1)["interval"]


def test_a_single_image_has_an_interval_without_width() -> None:
    found = calibration(np.array([0]), np.array([[0.8, 0.2]]))
    assert found["interval"] == pytest.approx([0.2, 0.2])


def test_a_model_that_may_abstain_answers_the_surest_images() -> None:
    confidence = np.linspace(0.99, 0.51, 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.zeros(100, int)
    labels[60:] = 1  # the 40 least sure are wrong
    found = abstention(labels, probabilities, 0.99)
    assert found["accuracy"] == 0.99
    assert found["coverage"] == 0.6
    assert found["confidence"] == pytest.approx(confidence[59])
    assert found["curve"][-1] == [1.0, 0.6]


def test_a_model_without_a_right_answer_answers_nothing() -> None:
    found = abstention(np.ones(100, int), np.tile([0.9, 0.1], (100, 1)), 0.99)
    assert (found["coverage"], found["confidence"]) == (0.0, None)


@pytest.mark.parametrize(("asked", "coverage"), [(0.74, 1.0), (0.75, 1.0), (0.76, 0.5)])
def test_the_accuracy_asked_for_may_be_reached_exactly(asked: float, coverage: float) -> None:
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])  # surest first
    assert abstention(np.array([1, 0, 0, 0]), probabilities, asked)["coverage"] == coverage


def test_the_curve_has_a_hundred_points_from_one_percent_to_all_images() -> None:
    confidence = np.linspace(0.99, 0.51, 1000)
    labels = np.arange(1000) >= 800  # the 200 least sure are wrong
    curve = abstention(labels.astype(int), np.stack([confidence, 1 - confidence], axis=1), 0.99)["curve"]
    assert [share for share, _ in curve] == pytest.approx([percent / 100 for percent in range(1, 101)])
    assert [accuracy for _, accuracy in curve] == pytest.approx([min(1, 80 / percent) for percent in range(1, 101)])


def test_images_of_which_a_model_is_equally_sure_stay_in_their_order() -> None:
    confidence = np.resize([0.9, 0.6], 2000)
    labels = np.arange(2000) >= 1000  # the first thousand are right, of the surer ones the first half
    found = abstention(labels.astype(int), np.stack([confidence, 1 - confidence], axis=1), 1.0)
    assert found["coverage"] == 0.25
