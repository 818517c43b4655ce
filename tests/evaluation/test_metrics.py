"""Classification and detection metrics, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.evaluation.metrics import compare_models, measure_accuracy, measure_classification, measure_detection
from fmnist_tasks.schemas.evaluation import ClassDifferences, Differences, OodFamily


def test_metrics_of_three_classes_agree_with_hand_computed_ones() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.eye(3)[[0, 0, 1, 1, 1, 0]]
    metrics = measure_classification(labels, probabilities, ["a", "b", "c"])
    assert metrics.images == 6
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.interval[0] < 4 / 6 < metrics.interval[1]
    assert metrics.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    a, b, c = metrics.classes
    assert (a.name, b.name, c.name) == ("a", "b", "c")
    assert (a.precision, a.recall, a.images) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert (b.precision, b.recall, b.f1) == (pytest.approx(2 / 3), 1, pytest.approx(0.8))
    assert (c.precision, c.recall, c.f1) == (0, 0, 0)
    assert b.accuracy == pytest.approx(5 / 6)
    assert metrics.means.recall == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_detector_that_separates_has_an_auroc_of_1_and_one_that_does_not_of_a_half() -> None:
    in_distribution, ood = np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.8])
    assert measure_detection(in_distribution, ood, 0.35, in_training=True) == OodFamily(
        auroc=1.0, fpr99=0.0, detected=1.0, in_training=True
    )
    assert measure_detection(in_distribution, in_distribution, 0.25, in_training=False).to_json() == {
        "auroc": 0.5,
        "fpr99": pytest.approx(2 / 3),
        "detected": pytest.approx(1 / 3),
        "in_training": False,
    }


def test_a_score_at_the_threshold_is_not_detected() -> None:
    detection = measure_detection(np.array([0.0, 1.0]), np.array([0.5, 0.5, 0.6, 0.4]), 0.5, in_training=False)
    assert detection.detected == 0.25


def test_the_fpr_is_measured_where_99_percent_of_the_in_distribution_images_are_accepted() -> None:
    in_distribution = -np.arange(1000)  # -9.99 is their 99% quantile
    ood = -np.array([9.9, 10.0, 49.9, 51.0])
    assert measure_detection(in_distribution, ood, 0, in_training=False).fpr99 == 0.75


def test_two_models_are_compared_on_the_images_that_only_one_classifies_correctly() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    candidate, champion = np.eye(2)[[0, 0, 1, 1, 0]], np.eye(2)[[0, 1, 0, 0, 0]]
    assert measure_accuracy(labels, champion) == pytest.approx(0.4)
    assert compare_models(labels, candidate, champion, ["a", "b"]) == (
        Differences(only_candidate=2, only_champion=1),
        [
            ClassDifferences(name="a", only_candidate=1, only_champion=1),
            ClassDifferences(name="b", only_candidate=1, only_champion=0),
        ],
    )
