"""Checks of single images of a batch: near-duplicates of known images, doubtful labels, and OOD images.

A label is doubtful if the champion prefers another class by more than it does on almost all validation images of that
class, which it was not trained on: confident learning (Northcutt et al. 2021, arXiv:1911.00068), with a threshold for
each class in place of a mean, so that the share of clean images that are set aside is known. The threshold of OOD
scores is chosen in the same way. Images with findings are set aside; the batch is quarantined if they are significantly
more than in clean batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from fmnist_tasks.schemas.policy import ReviewPolicy

_FINDINGS = {  # how the reason begins, and what several of them are called
    "near-duplicate": "near-duplicates",
    "out of distribution": "out of distribution",
    "doubtful label": "doubtful labels",
}
_EPSILON = 1e-7  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class ChampionPredictions:
    """What the champion predicts for images: probabilities (N, classes) and OOD scores (N,), both float32."""

    probabilities: np.ndarray
    ood_scores: np.ndarray


@dataclass(frozen=True)
class ReviewThresholds:
    """Beyond them, an image is set aside: margins (classes,) below which a label is doubtful, and the OOD score.

    A label that the champion predicts is never doubtful.
    """

    margins: np.ndarray
    ood_score: float
    label_false_alarm_rate: float  # expected share of clean images; above that of the policy with few validation images
    ood_false_alarm_rate: float

    @classmethod
    def choose(cls, predictions: ChampionPredictions, labels: np.ndarray, policy: ReviewPolicy) -> ReviewThresholds:
        """Choose the thresholds on validation images with labels (N,), which contain every class.

        A class with too few images for the rate of the policy takes the threshold of all classes together.
        """
        margins = compute_margins(predictions.probabilities, labels)
        common, rate = _choose_lower_threshold(margins, policy.label_false_alarm_rate)
        thresholds, rates = [], []
        for label in range(predictions.probabilities.shape[1]):
            own = margins[labels == label]
            is_enough = policy.label_false_alarm_rate * (len(own) + 1) >= 1
            threshold, own_rate = common, rate
            if is_enough:
                threshold, own_rate = _choose_lower_threshold(own, policy.label_false_alarm_rate)
            thresholds.append(min(threshold, 0.0))
            rates.append(own_rate)
        ood_score, ood_rate = _choose_lower_threshold(-predictions.ood_scores, policy.ood_false_alarm_rate)
        return cls(np.array(thresholds), -ood_score, float(np.mean(rates)), ood_rate)

    def compute_expected_share(self, policy: ReviewPolicy) -> float:
        """Return the share of a clean batch that is expected to be set aside."""
        excess = max(0.0, self.label_false_alarm_rate - policy.label_false_alarm_rate)
        excess += max(0.0, self.ood_false_alarm_rate - policy.ood_false_alarm_rate)
        return min(1.0, policy.expected_share + excess)


@dataclass(frozen=True)
class KnownImage:
    """An image of which another one is a near-duplicate."""

    description: str  # completes "near-duplicate of"
    pixels: np.ndarray  # uint8 (H, W) or (H, W, 3)
    is_test: bool  # whether it is a test image


@dataclass(frozen=True)
class ImageFinding:
    """Why one image is set aside."""

    row: int  # in the batch
    reasons: tuple[str, ...]
    suggested: int | None = None  # class that the champion predicts
    near_duplicate: KnownImage | None = None


def _choose_lower_threshold(values: np.ndarray, rate: float) -> tuple[float, float]:
    """Return a threshold, and the probability that a new value of the same distribution is below it.

    It is an order statistic (conformal prediction, Vovk et al. 2005), so the probability is exact for any number of
    values. It is at most the rate, if there are enough values, and otherwise the lowest that they allow.
    """
    rank = max(1, int(rate * (len(values) + 1)))
    return float(np.partition(values, rank - 1)[rank - 1]), rank / (len(values) + 1)


def compute_margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return by how much the logarithm of a label's probability exceeds that of the best other class, (N,)."""
    rows = np.arange(len(labels))
    logarithms = np.log(np.maximum(probabilities, _EPSILON))
    own = logarithms[rows, labels]
    logarithms[rows, labels] = -np.inf
    margins: np.ndarray = own - logarithms.max(axis=1)
    return margins


def find_image_findings(
    labels: np.ndarray,
    classes: Sequence[str],
    near_duplicates: Sequence[KnownImage | None],
    predictions: ChampionPredictions | None,
    thresholds: ReviewThresholds | None,
) -> list[ImageFinding]:
    """Return the findings about a batch with labels (N,), in the order of its images.

    `near_duplicates` has one of each image that has any. Without a champion, there are no predictions and thresholds.
    """
    doubtful = out_of_distribution = np.zeros(len(labels), bool)
    if predictions is not None and thresholds is not None:
        doubtful = compute_margins(predictions.probabilities, labels) < thresholds.margins[labels]
        out_of_distribution = predictions.ood_scores > thresholds.ood_score
    has_near_duplicate = np.array([known is not None for known in near_duplicates], bool)
    findings = []
    for row in np.flatnonzero(has_near_duplicate | doubtful | out_of_distribution).tolist():
        reasons, suggested = [], None
        if known := near_duplicates[row]:
            reasons.append(f"near-duplicate of {known.description}")
        if out_of_distribution[row] and predictions is not None and thresholds is not None:
            score = predictions.ood_scores[row]
            reasons.append(f"out of distribution: OOD score {score:.2f}, review threshold {thresholds.ood_score:.2f}")
        if doubtful[row] and predictions is not None:
            probabilities = predictions.probabilities[row]
            suggested = int(probabilities.argmax())
            reasons.append(
                f"doubtful label: the champion predicts {classes[suggested]} ({probabilities[suggested]:.1%}), not "
                f"{classes[labels[row]]} ({probabilities[labels[row]]:.1%})"
            )
        findings.append(ImageFinding(row, tuple(reasons), suggested, known))
    return findings


def find_quarantine_reason(
    findings: Sequence[ImageFinding], unreadable: int, images: int, policy: ReviewPolicy, expected_share: float
) -> str | None:
    """Return why a batch with so many images, the unreadable ones included, is quarantined; None if it is not.

    An exact binomial test compares the images that have findings or are unreadable with the share that is expected in a
    clean batch.
    """
    faulty = len(findings) + unreadable
    if not images:
        return None
    p_value = float(binomtest(faulty, images, expected_share, alternative="greater").pvalue)
    if p_value >= policy.significance or faulty / images <= policy.max_share:
        return None
    counts = Counter(
        name
        for finding in findings
        for kind, name in _FINDINGS.items()
        if any(reason.startswith(kind) for reason in finding.reasons)
    )
    counts["unreadable"] += unreadable
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    example = f" (for example, image {findings[0].row + 1:,}: {findings[0].reasons[0]})" if findings else ""
    return (
        f"{faulty:,} of {images:,} images ({faulty / images:.1%}) have findings or are unreadable: {shown}{example}. "
        f"At most {policy.max_share:.1%} may, and a clean batch has about {expected_share:.1%} (binomial test, p = "
        f"{p_value:.2g}). Correct the labels, remove near-duplicates and out-of-distribution images, repair unreadable "
        "ones, and submit the batch again"
    )
