"""Temperature scaling: dividing the logits by one number to calibrate the probabilities.

Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Fit the temperature to labels (N,), uint8, and probabilities (N, classes), float32.

    Returns the temperature with the lowest cross-entropy, and that cross-entropy in nats. The logarithms of the
    probabilities serve as logits: they differ by a constant per row, which has no effect.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    logits -= logits.max(axis=1, keepdims=True)
    true_logits = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(logits / temperature).sum(axis=1)) - true_logits / temperature).mean())

    minimum = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded")
    return float(np.exp(minimum.x)), float(minimum.fun)
