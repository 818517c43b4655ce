"""Whether stated probabilities can be taken at their word: of images given 80 %, 80 % should be right.

The expected calibration error: Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15
_DRAWS = 1000  # of the bootstrap


def calibration(labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """The expected calibration error with a 95 % bootstrap interval, and what each bin of confidence holds."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    random = np.random.default_rng(seed)
    resampled = (random.integers(0, len(labels), len(labels)) for _ in range(_DRAWS))
    draws = [_error(bins[drawn], confidence[drawn], right[drawn]) for drawn in resampled]
    counts = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(counts)
    return {
        "error": _error(bins, confidence, right),
        "interval": [float(bound) for bound in np.quantile(draws, (0.025, 0.975))],
        "bins": [
            {
                "images": int(counts[index]),
                "confidence": float(confidence[bins == index].mean()),
                "accuracy": float(right[bins == index].mean()),
            }
            for index in filled
        ],
    }


def abstention(labels: np.ndarray, probabilities: np.ndarray, accuracy: float) -> dict[str, Any]:
    """The greatest share of images that can be answered with that accuracy, surest first, and the whole curve."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(axis=1) == labels)[order]
    answered = np.arange(1, len(labels) + 1)
    accuracies = np.cumsum(right) / answered
    reached = np.flatnonzero(accuracies >= accuracy)
    steps = np.linspace(0, len(labels) - 1, 101).astype(int)[1:]
    last = int(reached[-1]) if len(reached) else None
    return {
        "accuracy": accuracy,
        "coverage": 0.0 if last is None else float(answered[last] / len(labels)),
        "confidence": None if last is None else float(confidence[order][last]),
        "curve": [[float(answered[step] / len(labels)), float(accuracies[step])] for step in steps],
    }


def _error(bins: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean distance between confidence and accuracy of the bins, weighted by their images."""
    gaps = np.bincount(bins, confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(bins))
