"""The steps that evaluate the base model and the candidate, and what the gates and the release step share with them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fmnist_tasks.provenance import describe_code
from fmnist_tasks.registry import champion, checkpoints, releases
from fmnist_tasks.registry.blobs import get_verified, open_verified, put_blob
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import Dataset
from fmnist_tasks.schemas.evaluation import ChampionComparison, Identity, OodDetection, Serving
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    CandidateEvaluationResult,
    EvaluationResult,
    TunedModelResult,
    ValidationResult,
)
from fmnist_tasks.serving.release import open_release
from fmnist_tasks.steps.step import Run, step

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_tasks.data.dataset import Arrays

_MAX_ERRORS = 40  # in the figure
_MAX_OOD_IMAGES = 1_000  # of each family
# Of each near family: with 1,000 images, an FPR of 1.5% has a standard error of 0.4 points.
_MAX_NEAR_OOD_IMAGES = 10_000
_SELECTIVE_ACCURACY = 0.99  # of selective prediction; coverage is measured at it


@step("validate_data", "choose_base")
def evaluate_base(store: Store, run: Run, validation: ValidationResult, base: BaseModelResult) -> EvaluationResult:
    """Evaluate the base model on the test images."""
    from fmnist_tasks.data.dataset import load_test_split
    from fmnist_tasks.model import h5

    checkpoints.delete_checkpoints(store, run.id)
    images, labels = load_test_split(store, validation.dataset)
    model = h5.load_model(get_verified(store, base.model), "base model")
    return EvaluationResult(**_evaluate(store, run, "base", validation, base.model, labels, h5.classify(model, images)))


@step("validate_data", "fine_tune")
def evaluate_tuned(
    store: Store, run: Run, validation: ValidationResult, tuned: TunedModelResult
) -> CandidateEvaluationResult:
    """Evaluate the candidate: metrics on test and OOD images, comparison with the champion, latency and size."""
    from fmnist_tasks.data.dataset import load_splits, pack_arrays
    from fmnist_tasks.evaluation import calibration, figures, metrics
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.ood.detector import Predictions, pick_examples
    from fmnist_tasks.model.ood.families import NEAR_FAMILIES, TRAINING_FAMILIES, list_families, make_ood_images

    checkpoints.delete_checkpoints(store, run.id)
    candidate, dataset = tuned.candidate, validation.dataset
    arrays, classes = load_splits(store, dataset), dataset.classes
    images, labels = arrays.test_images, arrays.test_labels
    file = get_verified(store, candidate.model)
    clock = time.monotonic()
    model = h5.load_model(file, "candidate model")
    load_seconds = time.monotonic() - clock
    threshold = candidate.ood_threshold
    test = Predictions.of(model, images, [classes[label] for label in labels])
    families = {}
    for family in list_families(dataset):
        ood = make_ood_images(
            family, images, _MAX_NEAR_OOD_IMAGES if family in NEAR_FAMILIES else _MAX_OOD_IMAGES, seed=0
        )
        families[family] = Predictions.of(model, ood, [family] * len(ood))
    examples, pictured = pick_examples(test, list(families.values()), dataset, threshold)
    fields = _evaluate(store, run, "candidate", validation, candidate.model, labels, test.probabilities)
    calibrated = calibration.measure_calibration(labels, test.probabilities)
    selective = calibration.measure_selective_prediction(labels, test.probabilities, _SELECTIVE_ACCURACY)
    with pack_arrays(probabilities=test.probabilities, ood_score=test.ood_scores) as packed:
        predictions = put_blob(store, packed)
    truths, predicted = [example.truth for example in examples], [example.answer for example in examples]
    pictures = {
        **fields.pop("pictures"),
        "candidate_calibration": put_blob(store, figures.draw_reliability(calibrated, selective)),
        **draw_errors(store, classes, images, labels, test.probabilities),
        "candidate_examples": put_blob(store, figures.draw_predictions(truths, predicted, pictured, classes)),
    }
    return CandidateEvaluationResult(
        **fields,
        temperature=candidate.temperature,
        calibration=calibrated,
        selective_prediction=selective,
        ood=OodDetection(
            threshold=threshold,
            accepted=float((test.ood_scores <= threshold).mean()),
            families={
                family: metrics.measure_detection(
                    test.ood_scores, ood.ood_scores, threshold, in_training=family in TRAINING_FAMILIES
                )
                for family, ood in families.items()
            },
            examples=examples,
        ),
        champion=compare_with_champion(store, dataset, arrays, test.probabilities, candidate.validation_accuracy),
        serving=Serving(
            single_image_ms=h5.measure_latency(model, images), load_seconds=load_seconds, bytes=candidate.model.bytes
        ),
        predictions=predictions,
        pictures=pictures,
    )


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
    store: Store, dataset: Dataset, arrays: Arrays, probabilities: np.ndarray, validation_accuracy: float
) -> ChampionComparison | None:
    """Compare the candidate, with test probabilities (N, classes), float32, with the champion; None without one."""
    from fmnist_tasks.evaluation import metrics
    from fmnist_tasks.model import h5

    entry = champion.find_champion(store)
    if entry is None:
        return None
    release = open_release(store, entry.version)
    releases.require_same_dataset(release.manifest, dataset)
    on_test = h5.classify(release.model, arrays.test_images)
    on_validation = h5.classify(release.model, arrays.validation_images)
    differences, by_class = metrics.compare_models(arrays.test_labels, probabilities, on_test, dataset.classes)
    return ChampionComparison(
        **dict(differences),
        version=entry.version,
        sequence=entry.sequence,
        accuracy=metrics.measure_accuracy(arrays.test_labels, on_test),
        classes=by_class,
        validation_accuracy=metrics.measure_accuracy(arrays.validation_labels, on_validation),
        candidate_validation_accuracy=validation_accuracy,
    )


def _evaluate(
    store: Store,
    run: Run,
    name: str,
    validation: ValidationResult,
    model: Reference,
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> dict[str, Any]:
    """The fields of an evaluation, from test labels (N,), uint8, and probabilities (N, classes), float32."""
    from fmnist_tasks.evaluation import figures, metrics

    classes = validation.dataset.classes
    test = metrics.measure_classification(labels, probabilities, classes, validation.test_near_duplicates)
    confusion = put_blob(store, figures.draw_confusion_matrix(test.confusion, classes))
    subject = "base model" if name == "base" else name
    return {
        **dict(make_identity(run, validation, model)),
        "test": test,
        "pictures": {f"{name}_confusion": confusion},
        "summary": f"{subject}: test accuracy {test.accuracy:.2%}, mean F1 {test.means.f1:.2%}",
    }
