"""Findings about single images, and when a batch with many of them is rejected."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.data.image_checks import (
    ChampionPredictions,
    ImageFinding,
    KnownImage,
    ReviewThresholds,
    compute_margins,
    find_image_findings,
    find_quarantine_reason,
)
from fmnist_tasks.schemas.policy import ReviewPolicy

POLICY = ReviewPolicy()
CLASSES = ["coat", "dress", "shirt"]
TEST_IMAGE = KnownImage("test image 8", np.zeros((28, 28), np.uint8), is_test=True)


def make_predictions(*rows: tuple[float, float, float], scores: float = 0.0) -> ChampionPredictions:
    return ChampionPredictions(np.array(rows, np.float32), np.full(len(rows), scores, np.float32))


def test_a_margin_compares_the_label_with_the_best_other_class() -> None:
    margins = compute_margins(np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0, 0, 1]], np.float32), np.array([0, 2, 0]))
    np.testing.assert_allclose(margins, [np.log(8), np.log(0.5), np.log(1e-7)], rtol=1e-5)


def test_limits_set_the_policys_share_of_good_images_of_each_class_aside() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 2000)
    probabilities = random.dirichlet([1, 1, 1], 6000).astype(np.float32)
    probabilities[np.arange(6000), labels] += np.repeat([0.6, 0.45, 0.3], 2000)  # classes of different difficulty
    predictions = ChampionPredictions(probabilities, random.normal(size=6000).astype(np.float32))
    limits = ReviewThresholds.choose(predictions, labels, POLICY)
    doubtful = compute_margins(probabilities, labels) < limits.margins[labels]
    assert [doubtful[labels == label].mean() for label in (0, 1, 2)] == pytest.approx(
        [POLICY.label_false_alarm_rate] * 3, abs=1e-3
    )
    assert (predictions.ood_scores > limits.ood_score).mean() == pytest.approx(POLICY.ood_false_alarm_rate, abs=5e-4)


def test_with_few_validation_images_a_label_that_the_champion_predicts_is_not_doubtful() -> None:
    """A class of 20 images takes the threshold of all 60, and more clean images than usual are expected to fail."""
    labels = np.repeat([0, 1, 2], 20)
    probabilities = np.full((60, 3), 1e-9, np.float32)
    probabilities[np.arange(60), labels] = 1
    predictions = ChampionPredictions(probabilities, np.arange(60, dtype=np.float32))
    thresholds = ReviewThresholds.choose(predictions, labels, POLICY)
    assert thresholds.margins.tolist() == [0, 0, 0]
    assert thresholds.ood_score == 59
    assert thresholds.label_false_alarm_rate == pytest.approx(1 / 61)
    assert thresholds.compute_expected_share(POLICY) == pytest.approx(0.015 + 1 / 61 - 0.009 + 1 / 61 - 0.002)
    sure = make_predictions((0.9999, 0.00005, 0.00005))
    assert find_image_findings(np.array([0]), CLASSES, [None], sure, thresholds) == []


def test_each_reason_is_given_and_images_without_one_continue() -> None:
    predictions = make_predictions((0.9, 0.05, 0.05), (0.02, 0.95, 0.03), (0.9, 0.05, 0.05), (0.05, 0.05, 0.9))
    predictions.ood_scores[2] = 5
    limits = ReviewThresholds(np.zeros(3), 1.0, 0.009, 0.002)
    near_duplicates = [None, None, None, TEST_IMAGE]
    findings = find_image_findings(np.array([0, 0, 0, 2]), CLASSES, near_duplicates, predictions, limits)
    assert [(finding.row, finding.suggested, finding.near_duplicate) for finding in findings] == [
        (1, 1, None),
        (2, None, None),
        (3, None, TEST_IMAGE),
    ]
    assert [finding.reasons for finding in findings] == [
        ("doubtful label: the champion predicts dress (95.0%), not coat (2.0%)",),
        ("out of distribution: OOD score 5.00, review threshold 1.00",),
        ("near-duplicate of test image 8",),
    ]


def test_without_a_champion_only_near_duplicates_are_found() -> None:
    findings = find_image_findings(np.array([0, 1]), CLASSES, [None, TEST_IMAGE], None, None)
    assert [finding.row for finding in findings] == [1]


@pytest.mark.parametrize(
    ("faulty", "images", "is_rejected"),
    [
        (0, 0, False),
        (1, 1, False),  # p = 0.015
        (2, 2, True),  # p = 0.0002
        (2, 20, False),  # p = 0.04
        (50, 1000, False),  # 5% is the limit
        (51, 1000, True),
        (100, 1000, True),
    ],
)
def test_a_batch_is_rejected_if_good_images_do_not_explain_its_findings(
    faulty: int, images: int, is_rejected: bool
) -> None:
    findings = [ImageFinding(row, ("near-duplicate of training image 5",)) for row in range(faulty - faulty // 2)]
    reason = find_quarantine_reason(findings, faulty // 2, images, POLICY, POLICY.expected_share)
    assert (reason is not None) == is_rejected
    if reason:
        assert reason.startswith(
            f"{faulty} of {images:,} images ({faulty / images:.1%}) have findings or are unreadable"
        )
        assert f"near-duplicates {len(findings)}, unreadable {faulty // 2} (for example, image 1: near-dup" in reason
