from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.evaluation.metrics import classification, compared, detection


def test_figures_of_three_classes_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.eye(3)[[0, 0, 1, 1, 1, 0]]
    found = classification(labels, probabilities, ["a", "b", "c"])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["interval"][0] < 4 / 6 < found["interval"][1]
    assert found["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    a, b, c = found["classes"]
    assert (a["precision"], a["recall"], a["images"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert (b["precision"], b["recall"], b["f1"]) == (pytest.approx(2 / 3), 1, pytest.approx(0.8))
    assert (c["precision"], c["recall"], c["f1"]) == (0, 0, 0)
    assert b["accuracy"] == pytest.approx(5 / 6)
    assert found["means"]["recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_detector_that_separates_and_one_that_does_not() -> None:
    real, fake = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2])
    assert detection(real, fake, 0.65) == {"auroc": 1.0, "fpr99": 0.0, "recognised": 1.0}
    assert detection(real, real, 0.75) == {
        "auroc": 0.5,
        "fpr99": pytest.approx(2 / 3),
        "recognised": pytest.approx(1 / 3),
    }


def test_the_false_positive_rate_is_that_where_99_percent_of_the_real_images_pass() -> None:
    real = np.arange(1000)  # of which 9.99 is the quantile at 1 %
    assert detection(real, np.array([9.9, 10.0, 49.9, 51.0]), 0)["fpr99"] == 0.75


def test_two_models_are_compared_on_the_images_that_only_one_has_right() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    candidate, champion = np.eye(2)[[0, 0, 1, 1, 0]], np.eye(2)[[0, 1, 0, 0, 0]]
    assert compared(labels, candidate, champion, ["a", "b"]) == {
        "accuracy": pytest.approx(0.4),
        "only_candidate": 2,
        "only_champion": 1,
        "classes": [
            {"class": "a", "only_candidate": 1, "only_champion": 1},
            {"class": "b", "only_candidate": 1, "only_champion": 0},
        ],
    }
