"""The steps that train: base models, the choice of one, and its fine-tuning into the candidate."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.machine_lock import hold_machine_lock
from fmnist_tasks.provenance import describe_code
from fmnist_tasks.registry.blobs import get_verified, put_blob
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    Candidate,
    CandidateModel,
    GateResult,
    TrainingResult,
    TunedModelResult,
    ValidationResult,
)
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.step import Run, step

if TYPE_CHECKING:
    from fmnist_tasks.data.dataset import Arrays
    from fmnist_tasks.model.training import Fit

_validation_loss = attrgetter("validation_loss")  # decides, since close accuracies differ at random


@step("validate_data", per_seed=True)
def train(store: Store, run: Run, validation: ValidationResult, seed: int) -> TrainingResult:
    """Train a base model from scratch, with one seed."""
    from fmnist_tasks.data.dataset import load_splits
    from fmnist_tasks.model import training

    dataset, profile = validation.dataset, run.parameters.profile_config
    arrays = load_splits(store, dataset)
    recipe = {"recipe": asdict(profile), "seed": seed}
    training_checkpoints = _make_checkpoints(store, run, f"base-{seed}", validation, **recipe)
    with hold_machine_lock(Settings.from_environment().training_lock):
        fit = training.train_model(
            arrays, len(dataset.classes), dataset.image_format, profile, seed, training_checkpoints
        )
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


@step("validate_data", "choose_base", "accuracy_gate")
def fine_tune(
    store: Store, run: Run, validation: ValidationResult, base: BaseModelResult, verdict: GateResult
) -> TunedModelResult:
    """Fine-tune the base model; base or tuned, the one with the lower validation loss becomes the candidate."""
    from fmnist_tasks.data.dataset import load_splits
    from fmnist_tasks.model import cnn, h5, tuning
    from fmnist_tasks.model.ood import detector

    dataset, profile = validation.dataset, run.parameters.profile_config
    arrays, classes, image_format = load_splits(store, dataset), len(dataset.classes), dataset.image_format
    if verdict.model_sha256 != base.model.sha256:
        raise ConflictError(
            "the accuracy gate accepted a different base model; clear evaluate_base and the tasks after it"
        )
    model = h5.load_model(get_verified(store, base.model), "base model")
    recipe = {"recipe": asdict(profile), "seed": base.seed, "base": base.model.sha256}
    tuning_checkpoints = _make_checkpoints(store, run, "tuned", validation, **recipe)
    with hold_machine_lock(Settings.from_environment().training_lock):
        fit = tuning.fine_tune_model(model, arrays, classes, image_format, profile, base.seed, tuning_checkpoints)
    tuned = TrainingResult(**_save_fit(store, run, "tuned", fit, arrays, validation), seed=base.seed)

    better: TrainingResult = min(base, tuned, key=_validation_loss)
    chosen: Literal["base", "tuned"] = "tuned" if better is tuned else "base"
    classifier = h5.load_model(get_verified(store, better.model), f"{chosen} model")
    exported = cnn.export_for_inference(profile, classes, image_format, classifier, better.temperature)
    candidate = detector.add_ood_head(exported, arrays.training, dataset)
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


def _make_checkpoints(store: Store, run: Run, name: str, validation: ValidationResult, **recipe: Any) -> Checkpoints:
    """The checkpoints of the training of one model, from which only the same run, data, code and recipe resume."""
    identity = {"data": validation.dataset.fingerprint, "code": describe_code().digest, **recipe}
    return Checkpoints(store, run.id, name, identity)


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

    dataset = validation.dataset
    model = build_classifier(run.parameters.profile_config, len(dataset.classes), dataset.image_format, fit.model)
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
