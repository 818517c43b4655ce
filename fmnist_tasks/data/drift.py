"""Whether images come from where those of a reference come from, feature by feature, at a stated rate of false alarms.

Each feature of an image becomes its place, 0 to 1, among the reference images of the same class: where both have one
source, places are spread evenly, whatever classes a batch holds. Two tests look at them: Kolmogorov and Smirnov's at
all places, a binomial one at the outermost thousandth on either side. Holm's correction over both and all features
keeps the chance that a good sample fails any of them at `FALSE_ALARMS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, ks_1samp, kstwo, uniform

from fmnist_tasks.significance import holm

FALSE_ALARMS = 0.001  # of a sample, all tests together
_OUTER = 0.001  # share of the reference that counts as extreme, on each side
# A large sample proves differences that do no harm: these are the least that count.
_LEAST_DISTANCE = 0.1  # between the distributions of places, 0 to 1
_LEAST_EXTREME = 0.01  # share of a sample's images that are extreme
_CHUNK = 5_000  # images at a time, for the sake of memory


@dataclass(frozen=True)
class Feature:
    """How one feature of a sample lies among the reference's."""

    name: str
    distance: float  # Kolmogorov and Smirnov's, 0 (alike) to 1
    extreme: float  # share of images outside all but the outermost thousandth of the reference
    p_distance: float  # corrected
    p_extreme: float

    @property
    def shifted(self) -> bool:
        """Whether the whole distribution differs, provably and by enough to matter."""
        return self.p_distance < FALSE_ALARMS and self.distance >= _LEAST_DISTANCE

    @property
    def outlying(self) -> bool:
        """Whether too many images are extreme, provably and by enough to matter."""
        return self.p_extreme < FALSE_ALARMS and self.extreme >= _LEAST_EXTREME


def features(images: np.ndarray, *, negative: bool = False) -> dict[str, np.ndarray]:
    """What the tests look at, each float (N,), of images uint8 (N, H, W) or of their negatives."""
    chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    parts = [_features(255 - chunk if negative else chunk) for chunk in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(
    ours: dict[str, np.ndarray], labels: np.ndarray, theirs: dict[str, np.ndarray], reference_labels: np.ndarray
) -> list[Feature]:
    """The features of a sample among those of the reference; every label (N,) must be among the reference's."""
    count, size = len(labels), int(np.isin(reference_labels, labels).sum())
    effective = max(1, count * size // (count + size))  # of two samples, as one against a known distribution
    found, p_values = [], []
    for number, name in enumerate(ours):
        places = _places(ours[name], labels, theirs[name], reference_labels, np.random.default_rng(number))
        distance = float(ks_1samp(places, uniform.cdf, mode="asymp").statistic)
        extreme = int(((places < _OUTER) | (places > 1 - _OUTER)).sum())
        found.append((name, distance, extreme / count))
        p_values += [
            float(kstwo.sf(distance, effective)),
            float(binomtest(extreme, count, 2 * _OUTER, alternative="greater").pvalue),
        ]
    corrected = holm(p_values)
    return [Feature(*row, *corrected[2 * number : 2 * number + 2]) for number, row in enumerate(found)]


def drift(found: list[Feature]) -> float:
    """One number to follow over weeks: the greatest distance of all features, 0 (alike) to 1 (nothing in common)."""
    return max((feature.distance for feature in found), default=0.0)


def _features(images: np.ndarray) -> dict[str, np.ndarray]:
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
        "height of the centre": rows @ np.arange(rows.shape[1], dtype=np.float32) / mass,
        "sideways position": columns @ np.arange(columns.shape[1], dtype=np.float32) / mass,
        "symmetry": np.abs(pixels - pixels[:, :, ::-1]).sum(axis=(1, 2)) / mass,
    }


def _places(
    values: np.ndarray, labels: np.ndarray, reference: np.ndarray, known: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """The place of each value, 0 to 1, among the reference's of its class (`known`); ties are broken by chance."""
    places = np.empty(len(values))
    for label in np.unique(labels):
        rows = labels == label
        ordered = np.sort(reference[known == label])
        low = np.searchsorted(ordered, values[rows], "left")
        high = np.searchsorted(ordered, values[rows], "right")
        places[rows] = (low + random.random(rows.sum()) * (high - low + 1)) / (len(ordered) + 1)
    return places
