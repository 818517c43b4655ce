"""Shared functions of the steps that evaluate a model: identities, comparisons and figures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fmnist_tasks.provenance import describe_code
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.blobs import open_verified, put_blob
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.evaluation import ChampionComparison, Identity, OtherClasses
from fmnist_tasks.schemas.runs import ValidationResult
from fmnist_tasks.service import open_release
from fmnist_tasks.steps.step import Run

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_tasks.data.dataset import Arrays

log = logging.getLogger(__name__)

_MAX_ERRORS = 40  # in the figure


def make_identity(run: Run, validation: ValidationResult, model: Reference) -> Identity:
    """The run, model, data and code that metrics and verdict of this run must have."""
    return Identity(
        run_id=run.id,
        model_sha256=model.sha256,
        data_fingerprint=validation.dataset.fingerprint,
        code_digest=describe_code().digest,
    )


def count_prediction_mismatches(store: Store, model: keras.Model, images: np.ndarray, predictions: Reference) -> int:
    """Count the predictions for images (N, H, W), uint8, that are not bit-identical to those that were evaluated."""
    import numpy as np

    from fmnist_tasks.data.npz import read_npz
    from fmnist_tasks.model import h5

    with open_verified(store, predictions) as file:
        evaluated = read_npz(file, "predictions", "probabilities", "ood_score")
    # NaN differs from itself, so a prediction that is NaN always counts.
    return sum(int(np.sum(a != b)) for a, b in zip(h5.predict(model, images), evaluated, strict=True))


def draw_errors(
    store: Store, classes: list[str], images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Reference]:
    """A figure of the most confident errors on images (N, H, W), uint8, if there are any."""
    from fmnist_tasks.evaluation import figures, metrics

    chosen = metrics.find_most_confident_errors(labels, probabilities, _MAX_ERRORS)
    if not len(chosen):
        return {}
    truths = [classes[label] for label in labels[chosen]]
    predicted = [classes[label] for label in probabilities[chosen].argmax(axis=1)]
    return {"candidate_errors": put_blob(store, figures.draw_predictions(truths, predicted, images[chosen], classes))}


def compare_with_champion(
    store: Store, classes: list[str], arrays: Arrays, probabilities: np.ndarray, validation_accuracy: float
) -> ChampionComparison | OtherClasses | None:
    """Compare the candidate, with test probabilities (N, classes), float32, with the champion; None without one."""
    from fmnist_tasks.evaluation import metrics
    from fmnist_tasks.model import h5

    entry = champion.find_champion(store)
    if entry is None:
        return None
    release = open_release(store, entry.version)
    if release.manifest.classes != classes:
        return OtherClasses(version=entry.version, sequence=entry.sequence, other_classes=release.manifest.classes)
    on_test = h5.classify(release.model, arrays.test_images)
    on_validation = h5.classify(release.model, arrays.validation_images)
    differences, by_class = metrics.compare_models(arrays.test_labels, probabilities, on_test, classes)
    return ChampionComparison(
        **dict(differences),
        version=entry.version,
        sequence=entry.sequence,
        accuracy=metrics.measure_accuracy(arrays.test_labels, on_test),
        classes=by_class,
        validation_accuracy=metrics.measure_accuracy(arrays.validation_labels, on_validation),
        candidate_validation_accuracy=validation_accuracy,
    )
