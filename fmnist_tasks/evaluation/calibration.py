"""Calibration: of the images that are classified with 80% confidence, 80% should be correct.

Expected calibration error: Guo et al. 2017, arXiv:1706.04599. Selective prediction: Geifman and El-Yaniv 2017,
arXiv:1705.08500.
"""

from __future__ import annotations

import numpy as np

from fmnist_tasks.schemas.evaluation import Calibration, ConfidenceBin, SelectivePrediction

BINS = 15
_RESAMPLES = 1000  # of the bootstrap


def measure_calibration(labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> Calibration:
    """The calibration of probabilities (N, classes), float32, for labels (N,), uint8.

    It consists of the expected calibration error, its 95% bootstrap interval, and the confidence bins with images.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    random = np.random.default_rng(seed)
    resamples = (random.integers(0, len(labels), len(labels)) for _ in range(_RESAMPLES))
    errors = [_compute_error(bins[rows], confidence[rows], correct[rows]) for rows in resamples]
    counts = np.bincount(bins, minlength=BINS)
    return Calibration(
        error=_compute_error(bins, confidence, correct),
        interval=[float(bound) for bound in np.quantile(errors, (0.025, 0.975))],
        bins=[
            ConfidenceBin(
                images=int(counts[index]),
                confidence=float(confidence[bins == index].mean()),
                accuracy=float(correct[bins == index].mean()),
            )
            for index in np.flatnonzero(counts)
        ],
    )


def measure_selective_prediction(labels: np.ndarray, probabilities: np.ndarray, accuracy: float) -> SelectivePrediction:
    """Coverage at an accuracy, from labels (N,), uint8, and probabilities (N, classes), float32; and the curve.

    Coverage is the largest share of images, most confident first, that are classified with that accuracy.
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    correct = (probabilities.argmax(axis=1) == labels)[order]
    covered = np.arange(1, len(labels) + 1)
    accuracies = np.cumsum(correct) / covered
    reached = np.flatnonzero(accuracies >= accuracy)
    steps = np.linspace(0, len(labels) - 1, 101).astype(int)[1:]
    last = int(reached[-1]) if len(reached) else None
    return SelectivePrediction(
        accuracy=accuracy,
        coverage=0.0 if last is None else float(covered[last] / len(labels)),
        confidence=None if last is None else float(confidence[order][last]),
        curve=[[float(covered[step] / len(labels)), float(accuracies[step])] for step in steps],
    )


def _compute_error(bins: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean difference between confidence and accuracy of the bins, weighted by their number of images."""
    gaps = np.bincount(bins, confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(bins))
