"""Labels that are likely wrong: images of one class that look, to a simple classifier, like another.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068): an image is suspicious if the classifier is at least as
sure of another class as it is, on average, of images that have that label. It is fitted to one half of the reference;
the other half says how many suspicious images of each pair of classes are usual, so that classes which look alike raise
no alarm. Fisher's exact test compares the two, with Holm's correction over all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import hypergeom
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.pipeline import make_pipeline

from fmnist_tasks.significance import holm

FALSE_ALARMS = 0.001  # of a sample, all pairs of classes together
_LEAST = 0.01  # share of a class's images, beyond what is usual, that counts
_COMPONENTS = 40  # of the pixels
_CHUNK = 5_000  # images at a time, for the sake of memory


@dataclass(frozen=True)
class Pair:
    """Images that have one label and look like another."""

    label: int
    looks_like: int
    images: np.ndarray  # indices of the suspicious ones, most suspicious first
    share: float  # of the images with that label
    usual: float  # the same in the reference
    p_value: float  # corrected

    @property
    def swapped(self) -> bool:
        """Whether there are more than usual, provably and by enough to matter."""
        return self.p_value < FALSE_ALARMS and self.share - self.usual >= _LEAST


class Judge:
    """A classifier fitted to one half of a reference, and what the other half says is usual."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Images uint8 (N, H, W) and labels (N,), with a handful of images of each class at least."""
        half = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
        components = min(_COMPONENTS, int(half.sum()) - 1)
        self._classifier = make_pipeline(
            PCA(components, random_state=0), QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
        )
        self._classifier.fit(_pixels(images[half]), labels[half])
        self._classes = self._classifier.classes_
        self._labels = labels[~half]
        usual = self._probabilities(images[~half])
        self._sure = np.array([usual[self._labels == label, row].mean() for row, label in enumerate(self._classes)])
        self._usual = self._like(usual, self._labels)

    def pairs(self, images: np.ndarray, labels: np.ndarray) -> list[Pair]:
        """What is suspicious among images (N, H, W) with labels (N,) of the reference's classes, by pair of classes."""
        given = self._probabilities(images)
        like = self._like(given, labels)
        found = []
        for row, label in enumerate(self._classes):
            rows, usual = np.flatnonzero(labels == label), self._usual[self._labels == label]
            for column, other in enumerate(self._classes):
                if column == row or not len(rows) or not len(usual):
                    continue
                members = rows[like[rows] == column]
                count, usual_count = len(members), int((usual == column).sum())
                p_value = hypergeom.sf(count - 1, len(rows) + len(usual), count + usual_count, len(rows))
                worst = members[np.argsort(given[members, row] - given[members, column], kind="stable")]
                shares = count / len(rows), usual_count / len(usual)
                found.append(Pair(int(label), int(other), worst, *shares, float(p_value)))
        corrected = holm([pair.p_value for pair in found])
        return [replace(pair, p_value=p_value) for pair, p_value in zip(found, corrected, strict=True)]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        chunks = range(0, len(images), _CHUNK)
        return np.concatenate([self._classifier.predict_proba(_pixels(images[at : at + _CHUNK])) for at in chunks])

    def _like(self, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The column of the other class that each image looks like, (N,); -1 if it looks like none."""
        candidates = np.where(probabilities >= self._sure, probabilities, 0.0)
        own = np.searchsorted(self._classes, labels).clip(max=len(self._classes) - 1)
        candidates[np.arange(len(labels)), own] = 0.0
        return np.where(candidates.max(axis=1) > 0, candidates.argmax(axis=1), -1)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255
