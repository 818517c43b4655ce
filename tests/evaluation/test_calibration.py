"""Temperature, calibration error and selective prediction, against known or hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.evaluation.calibration import measure_calibration, measure_selective_prediction
from fmnist_tasks.model.temperature import fit_temperature
from fmnist_tasks.significance import wilson_interval


def make_predictions(count: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) drawn from probabilities (N, 3), and these probabilities with logits multiplied by `sharpness`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (random.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    sharpened = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    return labels, sharpened


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_temperature_undoes_the_sharpening(sharpness: float) -> None:
    temperature, loss = fit_temperature(*make_predictions(20_000, sharpness))
    assert temperature == pytest.approx(sharpness, rel=0.05)
    assert loss == pytest.approx(fit_temperature(*make_predictions(20_000, 1.0))[1])


def test_the_error_is_small_for_true_probabilities_and_large_for_sharpened_ones() -> None:
    good, bad = (measure_calibration(*make_predictions(20_000, sharpness)) for sharpness in (1.0, 2.0))
    assert good.error < 0.015 < 0.05 < bad.error
    for calibration in (good, bad):
        low, high = calibration.interval
        assert low < high
        assert sum(row.images for row in calibration.bins) == 20_000
    assert bad.interval[0] > good.interval[1]


def test_the_error_agrees_with_a_hand_computed_one() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    calibration = measure_calibration(np.array([0, 1, 1, 1]), probabilities)
    assert calibration.error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert [row.to_json() for row in calibration.bins] == [
        {"images": 2, "confidence": pytest.approx(0.6), "accuracy": 1.0},
        {"images": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5},
    ]
    assert measure_calibration(np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])).error == 0


def test_a_confidence_of_one_is_in_the_last_bin_with_those_close_to_it() -> None:
    confidence = np.array([1.0, 0.935, 0.93])  # the last of 15 bins begins at 14/15
    calibration = measure_calibration(np.zeros(3, int), np.stack([confidence, 1 - confidence], axis=1))
    assert [(row.images, row.confidence) for row in calibration.bins] == [
        (1, pytest.approx(0.93)),
        (2, pytest.approx(0.9675)),
    ]


def test_the_interval_is_that_of_a_share_if_every_confidence_is_one() -> None:
    labels, probabilities = np.arange(1000) % 10 == 0, np.tile([1.0, 0.0], (1000, 1))
    calibration = measure_calibration(labels.astype(int), probabilities)
    assert calibration.error == pytest.approx(0.1)
    assert calibration.interval == pytest.approx(wilson_interval(100, 1000), abs=0.004)


def test_the_interval_follows_from_the_seed() -> None:
    labels, probabilities = make_predictions(200, 2.0)
    calibration = measure_calibration(labels, probabilities)
    assert measure_calibration(labels, probabilities) == calibration
    assert measure_calibration(labels, probabilities, seed=1).interval != calibration.interval


def test_the_interval_of_a_single_image_has_no_width() -> None:
    calibration = measure_calibration(np.array([0]), np.array([[0.8, 0.2]]))
    assert calibration.interval == pytest.approx([0.2, 0.2])


def test_the_most_confident_images_are_classified() -> None:
    confidence = np.linspace(0.99, 0.51, 100)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.zeros(100, int)
    labels[60:] = 1  # the 40 least confident are wrong
    selective = measure_selective_prediction(labels, probabilities, 0.99)
    assert selective.accuracy == 0.99
    assert selective.coverage == 0.6
    assert selective.confidence == pytest.approx(confidence[59])
    assert selective.curve[-1] == [1.0, 0.6]


def test_nothing_is_classified_if_no_prediction_is_correct() -> None:
    selective = measure_selective_prediction(np.ones(100, int), np.tile([0.9, 0.1], (100, 1)), 0.99)
    assert (selective.coverage, selective.confidence) == (0.0, None)


@pytest.mark.parametrize(("required", "coverage"), [(0.74, 1.0), (0.75, 1.0), (0.76, 0.5)])
def test_the_required_accuracy_may_be_reached_exactly(required: float, coverage: float) -> None:
    probabilities = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])  # most confident first
    assert measure_selective_prediction(np.array([1, 0, 0, 0]), probabilities, required).coverage == coverage


def test_the_curve_has_a_hundred_points_from_one_percent_to_all_images() -> None:
    confidence = np.linspace(0.99, 0.51, 1000)
    labels = np.arange(1000) >= 800  # the 200 least confident are wrong
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    curve = measure_selective_prediction(labels.astype(int), probabilities, 0.99).curve
    assert [share for share, _ in curve] == pytest.approx([percent / 100 for percent in range(1, 101)])
    assert [accuracy for _, accuracy in curve] == pytest.approx([min(1, 80 / percent) for percent in range(1, 101)])


def test_images_of_equal_confidence_stay_in_their_order() -> None:
    confidence = np.resize([0.9, 0.6], 2000)
    labels = np.arange(2000) >= 1000  # the first thousand are correct, of the more confident ones the first half
    selective = measure_selective_prediction(labels.astype(int), np.stack([confidence, 1 - confidence], axis=1), 1.0)
    assert selective.coverage == 0.25
