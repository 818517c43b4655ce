"""Temperature scaling: one number that logits are divided by, so that stated probabilities can be taken at their word.

Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """What to divide the logits by so that the cross-entropy of labels (N,) is least, and that cross-entropy.

    Probabilities (N, classes) tell the logits up to a number of each row, which changes nothing.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    logits -= logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(logits / temperature).sum(axis=1)) - right / temperature).mean())

    found = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded")
    return float(np.exp(found.x)), float(found.fun)
