"""Metrics of a classifier on labelled images, and of OOD detection on in-distribution and OOD images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from fmnist_tasks.schemas.evaluation import (
    ClassDifferences,
    Classification,
    ClassMetrics,
    Differences,
    NamedClassMetrics,
    OodFamily,
)
from fmnist_tasks.significance import wilson_interval


def measure_classification(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str], near_duplicates: Sequence[int] = ()
) -> Classification:
    """The metrics of probabilities (N, classes), float32, for labels (N,), uint8; `near_duplicates` are rows.

    They are accuracy with its 95% interval, confusion matrix (rows: true class), and precision, recall, F1 and
    one-vs-rest accuracy, (true positives + true negatives) / N, of each class and their means.
    """
    predicted = probabilities.argmax(axis=1)
    numbers = np.arange(len(classes))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    correct = np.diag(matrix)
    accuracy = (len(labels) - matrix.sum(axis=0) - matrix.sum(axis=1) + 2 * correct) / len(labels)
    columns = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy}
    others = np.delete(np.arange(len(labels)), list(near_duplicates))
    return Classification(
        images=len(labels),
        accuracy=measure_accuracy(labels, probabilities),
        near_duplicates=len(near_duplicates),
        accuracy_without_near_duplicates=(
            measure_accuracy(labels[others], probabilities[others]) if len(near_duplicates) and len(others) else None
        ),
        interval=list(wilson_interval(int((predicted == labels).sum()), len(labels))),
        confusion=matrix.tolist(),
        classes=[
            NamedClassMetrics(
                name=name,
                images=int(support[index]),
                **{metric: float(values[index]) for metric, values in columns.items()},
            )
            for index, name in enumerate(classes)
        ],
        means=ClassMetrics(**{metric: float(values.mean()) for metric, values in columns.items()}),
    )


def measure_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The accuracy of probabilities (N, classes), float32, for labels (N,), uint8."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def compare_models(
    labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, classes: list[str]
) -> tuple[Differences, list[ClassDifferences]]:
    """Compare the probabilities (N, classes), float32, of two models for labels (N,), uint8.

    Returns how many images only one of them classifies correctly: in all, and by true class.
    """
    by_candidate, by_champion = (probabilities.argmax(axis=1) == labels for probabilities in (candidate, champion))

    def count(images: np.ndarray) -> dict[str, int]:
        return {
            "only_candidate": int((by_candidate & ~by_champion & images).sum()),
            "only_champion": int((by_champion & ~by_candidate & images).sum()),
        }

    by_class = [ClassDifferences(name=name, **count(labels == index)) for index, name in enumerate(classes)]
    return Differences(**count(np.ones(len(labels), bool))), by_class


def find_most_confident_errors(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Indices of up to `count` most confident errors of probabilities (N, classes), float32, for labels (N,), uint8."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    indices: np.ndarray = wrong[order[:count]]
    return indices


def measure_detection(
    in_distribution: np.ndarray, ood: np.ndarray, threshold: float, *, in_training: bool
) -> OodFamily:
    """The metrics of OOD detection, from OOD scores (N,), float32, of in-distribution images and of one OOD family.

    They are the AUROC, the FPR at 99% TPR (the share of OOD images that is accepted where 99% of the in-distribution
    images are), and the share of OOD images above the threshold.
    """
    truth = np.concatenate([np.zeros(len(in_distribution)), np.ones(len(ood))])
    return OodFamily(
        auroc=float(roc_auc_score(truth, np.concatenate([in_distribution, ood]))),
        fpr99=float((ood <= np.quantile(in_distribution, 0.99)).mean()),
        detected=float((ood > threshold).mean()),
        in_training=in_training,
    )
