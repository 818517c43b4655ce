"""Figures of a classifier on labelled images, and of a detector on real and fake ones. Plain JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from fmnist_tasks.significance import share_interval


def classification(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Accuracy, confusion matrix (rows: true class), and per class and mean precision, recall and F1.

    Labels (N,), probabilities (N, classes); `interval` is the accuracy's, 95 %. The accuracy of one class is its share
    of correct answers among all images, in that class or not: (true positives + true negatives) / N.
    """
    predicted = probabilities.argmax(axis=1)
    numbers = np.arange(len(classes))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=0.0
    )
    correct = np.diag(matrix)
    class_accuracy = (len(labels) - matrix.sum(axis=0) - matrix.sum(axis=1) + 2 * correct) / len(labels)
    return {
        "images": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "interval": list(share_interval(int((predicted == labels).sum()), len(labels))),
        "confusion": matrix.tolist(),
        "classes": [
            {
                "class": name,
                "images": int(support[index]),
                "precision": float(precision[index]),
                "recall": float(recall[index]),
                "f1": float(f1[index]),
                "accuracy": float(class_accuracy[index]),
            }
            for index, name in enumerate(classes)
        ],
        "means": {
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "accuracy": float(class_accuracy.mean()),
        },
    }


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of labels (N,) whose class is the most probable of probabilities (N, classes)."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def compared(labels: np.ndarray, candidate: np.ndarray, champion: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """How many images only one of two models has right, in all and by true class; probabilities (N, classes)."""
    ours, theirs = (probabilities.argmax(axis=1) == labels for probabilities in (candidate, champion))

    def counts(images: np.ndarray) -> dict[str, int]:
        return {
            "only_candidate": int((ours & ~theirs & images).sum()),
            "only_champion": int((theirs & ~ours & images).sum()),
        }

    return {
        "accuracy": float(theirs.mean()),
        **counts(np.ones(len(labels), bool)),
        "classes": [{"class": name, **counts(labels == index)} for index, name in enumerate(classes)],
    }


def surest_mistakes(labels: np.ndarray, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Indices of the wrong answers, at most so many, that were given with the greatest probability; (N, classes)."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    surest: np.ndarray = wrong[order[:count]]
    return surest


def detection(real: np.ndarray, fake: np.ndarray, threshold: float) -> dict[str, float]:
    """AUROC of familiarity between real and fake images, and the share of the fake ones called novel.

    `fpr99` is the FPR at 99 % TPR: the share of fake images that would pass where 99 % of these real ones do.
    """
    truth = np.concatenate([np.ones(len(real)), np.zeros(len(fake))])
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate([real, fake]))),
        "fpr99": float((fake >= np.quantile(real, 0.01)).mean()),
        "recognised": float((fake < threshold).mean()),
    }
