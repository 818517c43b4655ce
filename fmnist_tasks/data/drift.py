"""Drift: whether images have the same distribution as those of a reference, feature by feature.

Each feature of an image becomes its percentile rank, 0 to 1, among the reference images of the same class. If both
have the same distribution, the ranks are uniform, whatever mix of classes a batch holds. A Kolmogorov-Smirnov test
compares all ranks with a uniform distribution; a binomial test counts those in the outermost thousandth on either
side. With Holm's correction over both tests and all features, a good sample fails any of them with a probability of
at most `significance` of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, ks_1samp, kstwo, uniform

from fmnist_tasks.data.colour import to_luminance
from fmnist_tasks.schemas.policy import DataPolicy
from fmnist_tasks.significance import holm

_TAIL = 0.001  # share of the reference on each side beyond which an image is extreme
_CHUNK_SIZE = 5_000  # images; limits memory


@dataclass(frozen=True)
class Feature:
    """One feature of a sample, compared with the reference."""

    name: str
    distance: float  # Kolmogorov-Smirnov, 0 (identical) to 1
    extreme_share: float  # of images in the outermost thousandth of the reference, on either side
    p_distance: float  # corrected
    p_extreme: float

    def has_shifted(self, policy: DataPolicy) -> bool:
        """Whether the distribution differs, significantly and by enough to matter."""
        return self.p_distance < policy.significance and self.distance >= policy.min_drift

    def has_outliers(self, policy: DataPolicy) -> bool:
        """Whether too many images are extreme, significantly and by enough to matter."""
        return self.p_extreme < policy.significance and self.extreme_share >= policy.min_outliers


def compute_features(images: np.ndarray, *, negative: bool = False) -> dict[str, np.ndarray]:
    """Return the features, each float (N,), of images uint8 (N, H, W) or (N, H, W, 3), or of their negatives."""
    slices = (images[start : start + _CHUNK_SIZE] for start in range(0, len(images), _CHUNK_SIZE))
    chunks = [_compute_features(255 - chunk if negative else chunk) for chunk in slices]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def compare_features(
    features: dict[str, np.ndarray],
    labels: np.ndarray,
    reference_features: dict[str, np.ndarray],
    reference_labels: np.ndarray,
) -> list[Feature]:
    """Compare the features of a sample with the reference; every label (N,) must occur in the reference."""
    count, size = len(labels), int(np.isin(reference_labels, labels).sum())
    effective_size = max(1, count * size // (count + size))  # of the two-sample test, as a one-sample test
    statistics, p_values = [], []
    for number, name in enumerate(features):
        ranks = _compute_percentile_ranks(
            features[name], labels, reference_features[name], reference_labels, np.random.default_rng(number)
        )
        distance = float(ks_1samp(ranks, uniform.cdf, mode="asymp").statistic)
        extreme = int(((ranks < _TAIL) | (ranks > 1 - _TAIL)).sum())
        statistics.append((name, distance, extreme / count))
        p_values += [
            float(kstwo.sf(distance, effective_size)),
            float(binomtest(extreme, count, 2 * _TAIL, alternative="greater").pvalue),
        ]
    corrected = holm(p_values)
    return [Feature(*row, *corrected[2 * number : 2 * number + 2]) for number, row in enumerate(statistics)]


def measure_drift(features: list[Feature]) -> float:
    """Return the largest distance of all features: 0 (identical distributions) to 1 (nothing in common)."""
    return max((feature.distance for feature in features), default=0.0)


def _compute_features(images: np.ndarray) -> dict[str, np.ndarray]:
    if images.ndim == 4:
        return _compute_features(to_luminance(images)) | _compute_colour_features(images)
    pixels = images.astype(np.float32)
    flat = pixels.reshape(len(pixels), -1)
    mass = np.maximum(flat.sum(axis=1), 1.0)
    rows, columns = pixels.sum(axis=2), pixels.sum(axis=1)
    return {
        "brightness": flat.mean(axis=1),
        "contrast": flat.std(axis=1),
        "black pixels": (flat == 0).mean(axis=1),
        "white pixels": (flat >= 250).mean(axis=1),
        "edges": np.abs(np.diff(pixels, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2)),
        "vertical centroid": rows @ np.arange(rows.shape[1], dtype=np.float32) / mass,
        "horizontal centroid": columns @ np.arange(columns.shape[1], dtype=np.float32) / mass,
        "symmetry": np.abs(pixels - pixels[:, :, ::-1]).sum(axis=(1, 2)) / mass,
    }


def _compute_colour_features(images: np.ndarray) -> dict[str, np.ndarray]:
    """The means of the colours, and of the difference between the strongest and the weakest colour of a pixel."""
    means = images.mean(axis=(1, 2), dtype=np.float32)
    spread = (images.max(axis=3) - images.min(axis=3)).mean(axis=(1, 2), dtype=np.float32)
    return {"red": means[:, 0], "green": means[:, 1], "blue": means[:, 2], "colourfulness": spread}


def _compute_percentile_ranks(
    values: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray,
    reference_labels: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the rank of each value, 0 to 1, among reference values of its class; ties are broken at random."""
    ranks = np.empty(len(values))
    for label in np.unique(labels):
        rows = labels == label
        ordered = np.sort(reference[reference_labels == label])
        low = np.searchsorted(ordered, values[rows], "left")
        high = np.searchsorted(ordered, values[rows], "right")
        ranks[rows] = (low + random.random(rows.sum()) * (high - low + 1)) / (len(ordered) + 1)
    return ranks
