"""Checks of single images of a batch: near-duplicates of known images, doubtful labels, and OOD images.

A label is doubtful if the champion prefers another class by more than it does on almost all validation images of that
class, which it was not trained on: confident learning (Northcutt et al. 2021, arXiv:1911.00068), with a limit for each
class in place of a mean, so that the share of good images that are set aside is known. The limit of OOD scores is set
in the same way. Images with findings are set aside; the batch is quarantined if they are significantly more than in
clean batches.
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
    """Beyond them, an image is set aside: margins (classes,) below which a label is doubtful, and the OOD score."""

    margins: np.ndarray
    ood_score: float

    @classmethod
    def choose(cls, predictions: ChampionPredictions, labels: np.ndarray, policy: ReviewPolicy) -> ReviewThresholds:
        """Choose the limits on validation images with labels (N,), which contain every class."""
        margins = compute_margins(predictions.probabilities, labels)
        classes = range(predictions.probabilities.shape[1])
        return cls(
            np.array([np.quantile(margins[labels == label], policy.label_false_alarm_rate) for label in classes]),
            float(np.quantile(predictions.ood_scores, 1 - policy.ood_false_alarm_rate)),
        )


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
    neighbour: KnownImage | None = None  # a near-duplicate


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
    neighbours: Sequence[KnownImage | None],
    predictions: ChampionPredictions | None,
    limits: ReviewThresholds | None,
) -> list[ImageFinding]:
    """Return the findings about a batch with labels (N,), in the order of its images.

    `neighbours` has a near-duplicate of each image that has one. Without a champion, there are no predictions and
    limits.
    """
    doubtful = out_of_distribution = np.zeros(len(labels), bool)
    if predictions is not None and limits is not None:
        doubtful = compute_margins(predictions.probabilities, labels) < limits.margins[labels]
        out_of_distribution = predictions.ood_scores > limits.ood_score
    has_near_duplicate = np.array([neighbour is not None for neighbour in neighbours], bool)
    findings = []
    for row in np.flatnonzero(has_near_duplicate | doubtful | out_of_distribution).tolist():
        reasons, suggested = [], None
        if neighbour := neighbours[row]:
            reasons.append(f"near-duplicate of {neighbour.description}")
        if out_of_distribution[row] and predictions is not None and limits is not None:
            score = predictions.ood_scores[row]
            reasons.append(f"out of distribution: OOD score {score:.2f}, review threshold {limits.ood_score:.2f}")
        if doubtful[row] and predictions is not None:
            probabilities = predictions.probabilities[row]
            suggested = int(probabilities.argmax())
            reasons.append(
                f"doubtful label: the champion predicts {classes[suggested]} ({probabilities[suggested]:.1%}), not "
                f"{classes[labels[row]]} ({probabilities[labels[row]]:.1%})"
            )
        findings.append(ImageFinding(row, tuple(reasons), suggested, neighbour))
    return findings


def find_rejection_reason(
    findings: Sequence[ImageFinding], unreadable: int, images: int, policy: ReviewPolicy
) -> str | None:
    """Return why a batch with so many images, the unreadable ones included, is quarantined; None if it is not.

    An exact binomial test compares the images that have findings or are unreadable with the share that is expected in a
    clean batch.
    """
    faulty = len(findings) + unreadable
    if not images:
        return None
    p_value = float(binomtest(faulty, images, policy.expected_share, alternative="greater").pvalue)
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
        f"{faulty:,} of {images:,} images ({faulty / images:.1%}) have findings or are unreadable, above the limit of "
        f"{policy.max_share:.1%}; in a clean batch {policy.expected_share:.1%} are expected (binomial test, p = "
        f"{p_value:.2g}): {shown}{example}. Correct the labels, remove near-duplicates and out-of-distribution images, "
        "and submit the batch again"
    )
