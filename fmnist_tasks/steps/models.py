"""The steps of the task groups `base_model` and `tuned_model`, except the gates: training and evaluation."""

from __future__ import annotations

import time
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.machine_lock import hold_machine_lock
from fmnist_tasks.provenance import describe_code
from fmnist_tasks.registry import checkpoints
from fmnist_tasks.registry.blobs import get_verified, put_blob
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.evaluation import OodDetection, Serving
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    Candidate,
    CandidateEvaluationResult,
    CandidateModel,
    EvaluationResult,
    GateResult,
    TrainingResult,
    TunedModelResult,
    ValidationResult,
)
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.evaluation import compare_with_champion, draw_errors, make_identity
from fmnist_tasks.steps.step import Run, step

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.dataset import Arrays
    from fmnist_tasks.model.training import Fit
    from fmnist_tasks.schemas.base import Reference

_validation_loss = attrgetter("validation_loss")  # decides, since close accuracies differ at random

_MAX_OOD_IMAGES = 1_000  # of each family
# Of each near family: with 1,000 images, an FPR of 1.5 % has a standard error of 0.4 points.
_MAX_NEAR_OOD_IMAGES = 10_000
_SELECTIVE_ACCURACY = 0.99  # of selective prediction; coverage is measured at it


@step("validate_data", per_seed=True)
def train(store: Store, run: Run, validation: ValidationResult, seed: int) -> TrainingResult:
    """Train a base model from scratch, with one seed."""
    from fmnist_tasks.data.dataset import load_splits
    from fmnist_tasks.model import training

    arrays, profile = load_splits(store, validation.dataset), run.parameters.profile_config
    recipe = {"recipe": asdict(profile), "seed": seed}
    training_checkpoints = _make_checkpoints(store, run, f"base-{seed}", validation, **recipe)
    with hold_machine_lock(Settings.from_environment().training_lock):
        fit = training.train_model(arrays, len(validation.dataset.classes), profile, seed, training_checkpoints)
    return TrainingResult(**_save_fit(store, run, "base", fit, arrays, validation), seed=seed)


@step("train")
def choose_base(store: Store, run: Run, candidates: list[TrainingResult]) -> BaseModelResult:
    """Choose the base model: the one with the lowest validation loss."""
    best = min(candidates, key=_validation_loss)
    rows = [
        CandidateModel(
            seed=candidate.seed,
            validation_accuracy=candidate.validation_accuracy,
            validation_loss=candidate.validation_loss,
            chosen=candidate is best,
        )
        for candidate in candidates
    ]
    which = f"best of {len(rows)} base models by validation loss:" if len(rows) > 1 else "the only base model,"
    summary = f"{which} seed {best.seed}; {best.summary.removeprefix('base model: ')}"
    return BaseModelResult(**dict(best) | {"summary": summary}, candidates=rows)


@step("validate_data", "choose_base")
def evaluate_base(store: Store, run: Run, validation: ValidationResult, base: BaseModelResult) -> EvaluationResult:
    """Evaluate the base model on the test images."""
    from fmnist_tasks.data.dataset import load_test_split
    from fmnist_tasks.model import h5

    checkpoints.delete_checkpoints(store, run.id)
    images, labels = load_test_split(store, validation.dataset)
    model = h5.load_model(get_verified(store, base.model), "base model")
    return EvaluationResult(**_evaluate(store, run, "base", validation, base.model, labels, h5.classify(model, images)))


@step("validate_data", "choose_base", "accuracy_gate")
def fine_tune(
    store: Store, run: Run, validation: ValidationResult, base: BaseModelResult, verdict: GateResult
) -> TunedModelResult:
    """Fine-tune the base model; base or tuned, the one with the lower validation loss becomes the candidate."""
    from fmnist_tasks.data.dataset import load_splits
    from fmnist_tasks.model import cnn, h5, tuning
    from fmnist_tasks.model.ood import detector

    arrays, classes = load_splits(store, validation.dataset), len(validation.dataset.classes)
    profile = run.parameters.profile_config
    if verdict.model_sha256 != base.model.sha256:
        raise ConflictError(
            "the accuracy gate accepted a different base model; clear evaluate_base and the tasks after it"
        )
    model = h5.load_model(get_verified(store, base.model), "base model")
    recipe = {"recipe": asdict(profile), "seed": base.seed, "base": base.model.sha256}
    tuning_checkpoints = _make_checkpoints(store, run, "tuned", validation, **recipe)
    with hold_machine_lock(Settings.from_environment().training_lock):
        fit = tuning.fine_tune_model(model, arrays, classes, profile, base.seed, tuning_checkpoints)
    tuned = TrainingResult(**_save_fit(store, run, "tuned", fit, arrays, validation), seed=base.seed)

    better: TrainingResult = min(base, tuned, key=_validation_loss)
    chosen: Literal["base", "tuned"] = "tuned" if better is tuned else "base"
    classifier = h5.load_model(get_verified(store, better.model), f"{chosen} model")
    exported = cnn.export_for_inference(profile, classes, classifier, better.temperature)
    candidate = detector.add_ood_head(exported, arrays.training)
    _, ood_scores = h5.predict(candidate, arrays.validation_images)
    gain = tuned.validation_accuracy - base.validation_accuracy
    summary = (
        f"{tuned.summary} ({gain * 100:+.2f} points from the base model), validation loss {tuned.validation_loss:.4f} "
        f"(base model: {base.validation_loss:.4f}); the {chosen} model is the candidate"
    )
    return TunedModelResult(
        **dict(tuned) | {"summary": summary},
        chosen=chosen,
        candidate=Candidate(
            model=put_blob(store, h5.encode_model(candidate)),
            ood_threshold=detector.choose_threshold(ood_scores),
            validation_accuracy=better.validation_accuracy,
            temperature=better.temperature,
        ),
    )


@step("validate_data", "fine_tune")
def evaluate_tuned(
    store: Store, run: Run, validation: ValidationResult, tuned: TunedModelResult
) -> CandidateEvaluationResult:
    """Evaluate the candidate: metrics on test and OOD images, comparison with the champion, latency and size."""
    from fmnist_tasks.data.dataset import load_splits, pack_arrays
    from fmnist_tasks.evaluation import calibration, figures, metrics
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.ood.detector import Predictions, pick_examples
    from fmnist_tasks.model.ood.families import FAMILIES, NEAR_FAMILIES, TRAINING_FAMILIES, make_ood_images

    checkpoints.delete_checkpoints(store, run.id)
    candidate, classes = tuned.candidate, validation.dataset.classes
    arrays = load_splits(store, validation.dataset)
    images, labels = arrays.test_images, arrays.test_labels
    file = get_verified(store, candidate.model)
    clock = time.monotonic()
    model = h5.load_model(file, "candidate model")
    load_seconds = time.monotonic() - clock
    threshold = candidate.ood_threshold
    test = Predictions.of(model, images, [classes[label] for label in labels])
    families = {}
    for family in FAMILIES:
        ood = make_ood_images(
            family, images, _MAX_NEAR_OOD_IMAGES if family in NEAR_FAMILIES else _MAX_OOD_IMAGES, seed=0
        )
        families[family] = Predictions.of(model, ood, [family] * len(ood))
    examples, pictured = pick_examples(test, list(families.values()), classes, threshold)
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
        champion=compare_with_champion(store, classes, arrays, test.probabilities, candidate.validation_accuracy),
        serving=Serving(
            single_image_ms=h5.measure_latency(model, images), load_seconds=load_seconds, bytes=candidate.model.bytes
        ),
        predictions=predictions,
        pictures=pictures,
    )


def _make_checkpoints(store: Store, run: Run, name: str, validation: ValidationResult, **recipe: Any) -> Checkpoints:
    """The checkpoints of the training of one model, from which only the same run, data, code and recipe resume."""
    identity = {"data": validation.dataset.fingerprint, "code": describe_code().digest, **recipe}
    return Checkpoints(store, run.id, name, identity)


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
    test = metrics.measure_classification(labels, probabilities, classes)
    confusion = put_blob(store, figures.draw_confusion_matrix(test.confusion, classes))
    return {
        **dict(make_identity(run, validation, model)),
        "test": test,
        "pictures": {f"{name}_confusion": confusion},
        "summary": f"{name} model: test accuracy {test.accuracy:.2%}, mean F1 {test.means.f1:.2%}",
    }


def _save_fit(
    store: Store, run: Run, name: str, fit: Fit, arrays: Arrays, validation: ValidationResult
) -> dict[str, Any]:
    """Save a trained network as a classifier; return the fields of its result.

    The validation loss is measured after temperature scaling, since a release is scaled.
    """
    from fmnist_tasks.evaluation import figures, metrics
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.cnn import build_classifier
    from fmnist_tasks.model.temperature import fit_temperature

    model = build_classifier(run.parameters.profile_config, len(validation.dataset.classes), fit.model)
    probabilities = h5.classify(model, arrays.validation_images)
    accuracy = metrics.measure_accuracy(arrays.validation_labels, probabilities)
    temperature, loss = fit_temperature(arrays.validation_labels, probabilities)
    return {
        "curves": fit.curves,
        "best_epoch": fit.best_epoch,
        "train_accuracy": fit.train_accuracy,
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "temperature": temperature,
        "model": put_blob(store, h5.encode_model(model)),
        "weights": model.count_params(),
        "pictures": {
            f"{name}_learning_curves": put_blob(store, figures.draw_learning_curves(fit.curves, f"{name} model"))
        },
        "summary": (
            f"{name} model: {len(fit.curves.loss)} epochs, training accuracy {fit.train_accuracy:.2%}, "
            f"validation accuracy {accuracy:.2%}"
        ),
    }
