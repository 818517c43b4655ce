"""Likely label errors: images of one class that look, to a simple classifier, like another class.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068): an image is suspicious if the classifier is at least as
confident of another class as it is, on average, of the images with that label. The classifier is fitted to one half of
the reference. The other half shows how many suspicious images to expect for each pair of classes, since some classes
look alike. Fisher's exact test compares the two numbers, with Holm's correction over all pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import hypergeom
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from fmnist_tasks.data.colour import to_luminance
from fmnist_tasks.schemas.policy import DataPolicy
from fmnist_tasks.significance import holm

_COMPONENTS = 40  # of the pixels
_MAX_PIXELS = 32 * 32 * 3  # of an image; larger ones are reduced
_CHUNK_SIZE = 5_000  # images; limits memory


@dataclass(frozen=True)
class ConfusedClasses:
    """Images with one label that look like another class."""

    label: int
    looks_like: int
    images: np.ndarray  # indices of the suspicious images, most suspicious first
    share: float  # of the images with that label
    expected_share: float  # the same in the reference
    p_value: float  # corrected

    def has_errors(self, policy: DataPolicy) -> bool:
        """Whether there are more than expected, significantly and by enough to matter."""
        return self.p_value < policy.significance and self.share - self.expected_share >= policy.min_label_errors


class LabelErrorDetector:
    """A classifier fitted to one half of a reference, and the confusions to expect, from the other half."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Fit to images uint8 (N, H, W) or (N, H, W, 3), and labels (N,), with at least a handful of each class."""
        half = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
        pixels = _flatten_pixels(images[half])
        components = min(_COMPONENTS, len(pixels) - 1, pixels.shape[1])
        self._classifier = make_pipeline(
            PCA(components, random_state=0), QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
        )
        self._classifier.fit(pixels, labels[half])
        self._classes = self._classifier.classes_
        self._labels = labels[~half]
        probabilities = self._predict_probabilities(images[~half])
        self._thresholds = np.array(
            [probabilities[self._labels == label, column].mean() for column, label in enumerate(self._classes)]
        )
        self._confusions = self._find_likely_classes(probabilities, self._labels)

    def find_confused_classes(self, images: np.ndarray, labels: np.ndarray) -> list[ConfusedClasses]:
        """Return the suspicious images among (N, H, W) with labels (N,) of the reference's classes, by pair."""
        probabilities = self._predict_probabilities(images)
        likely = self._find_likely_classes(probabilities, labels)
        pairs = []
        for own, label in enumerate(self._classes):
            rows, confusions = np.flatnonzero(labels == label), self._confusions[self._labels == label]
            for other, other_label in enumerate(self._classes):
                if other == own or not len(rows) or not len(confusions):
                    continue
                suspicious = rows[likely[rows] == other]
                count, expected = len(suspicious), int((confusions == other).sum())
                p_value = hypergeom.sf(count - 1, len(rows) + len(confusions), count + expected, len(rows))
                order = np.argsort(probabilities[suspicious, own] - probabilities[suspicious, other], kind="stable")
                shares = count / len(rows), expected / len(confusions)
                pairs.append(ConfusedClasses(int(label), int(other_label), suspicious[order], *shares, float(p_value)))
        corrected = holm([pair.p_value for pair in pairs])
        return [replace(pair, p_value=p_value) for pair, p_value in zip(pairs, corrected, strict=True)]

    def _predict_probabilities(self, images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), _CHUNK_SIZE)
        return np.concatenate(
            [self._classifier.predict_proba(_flatten_pixels(images[start : start + _CHUNK_SIZE])) for start in starts]
        )

    def _find_likely_classes(self, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the column of the other class that each image looks like, (N,); -1 for none."""
        candidates = np.where(probabilities >= self._thresholds, probabilities, 0.0)
        own = np.searchsorted(self._classes, labels).clip(max=len(self._classes) - 1)
        candidates[np.arange(len(labels)), own] = 0.0
        return np.where(candidates.max(axis=1) > 0, candidates.argmax(axis=1), -1)


def _flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Return the pixels, float32 (N, pixels) in 0..1; those of large images in greyscale and at a lower resolution."""
    if images[0].size > _MAX_PIXELS and images.ndim == 4:
        images = to_luminance(images)
    step = math.ceil(math.sqrt(images[0].size / _MAX_PIXELS)) if len(images) else 1
    if step > 1:
        height, width = (size // step * step for size in images.shape[1:3])
        blocks = images[:, :height, :width].reshape(len(images), height // step, step, width // step, step)
        images = blocks.mean(axis=(2, 4))
    return images.reshape(len(images), -1).astype(np.float32) / 255
