"""The steps of the task groups `base_model` and `tuned_model`: train, measure, judge."""

from __future__ import annotations

import time
from dataclasses import asdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.evaluation import gate, promotion
from fmnist_tasks.provenance import code_facts
from fmnist_tasks.registry import champion, checkpoints
from fmnist_tasks.registry.blobs import get_verified, put_blob
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.documents import digest_of
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.judging import (
    against_champion,
    decided,
    differing,
    identity,
    measured,
    mistakes,
    origin,
    policy,
)
from fmnist_tasks.steps.step import Result, Run, step
from fmnist_tasks.turns import one_at_a_time

if TYPE_CHECKING:
    from fmnist_tasks.data.dataset import Arrays
    from fmnist_tasks.model.training import Fit

_validation_loss = itemgetter("validation_loss")  # chooses: of close accuracies chance decides which is greater

_FAKES = 1_000  # images at most of each family of fake ones
_CLOSE_FAKES = 10_000  # of each close family: an FPR of 1.5 % of 1,000 images has a standard error of 0.4 points
_ANSWERED_RIGHTLY = 0.99  # accuracy of a model that may abstain, for which the report says how much it answers


@step("validate_data", per_seed=True)
def train(store: Store, run: Run, validated: Result, seed: int) -> Result:
    """Train one candidate for the base model from scratch."""
    from fmnist_tasks.data.dataset import load
    from fmnist_tasks.model import training

    arrays, classes, profile = load(store, validated["dataset"]), _classes(validated), run.parameters.training
    states = _checkpoints(store, run, f"base-{seed}", validated, recipe=asdict(profile), seed=seed)
    with one_at_a_time(Settings.from_environment().training_lock):
        fit = training.train(arrays, classes, profile, seed, states)
    return {"seed": seed, **_kept(store, run, "base", fit, arrays, classes)}


@step("train")
def choose_base(store: Store, run: Run, candidates: list[Result]) -> Result:
    """The candidate with the least validation loss becomes the base model."""
    best = min(candidates, key=_validation_loss)
    rows = [
        {
            "seed": candidate["seed"],
            "validation_accuracy": candidate["validation_accuracy"],
            "validation_loss": candidate["validation_loss"],
            "chosen": candidate is best,
        }
        for candidate in candidates
    ]
    return {**best, "candidates": rows, "summary": f"seed {best['seed']} of {len(rows)} candidates: {best['summary']}"}


@step("validate_data", "choose_base")
def evaluate_base(store: Store, run: Run, validated: Result, trained: Result) -> Result:
    """Measure the base model on the test images."""
    from fmnist_tasks.data.dataset import load_test
    from fmnist_tasks.model import h5

    checkpoints.clear(store, run.id)
    images, labels = load_test(store, validated["dataset"])
    model = h5.load(get_verified(store, trained["model"]), "base model")
    return measured(store, run, "base", validated, trained, labels, h5.classify(model, images))


@step("validate_data", "choose_base", "evaluate_base")
def accuracy_gate(store: Store, run: Run, validated: Result, trained: Result, evaluated: Result) -> Result:
    """Stop the run unless the base model reaches the accuracy threshold on the test images."""
    verdict = gate.judge(
        expected := identity(run, validated, trained),
        [gate.same_origin(expected, evaluated), promotion.accuracy(policy(run).accuracy, evaluated)],
    )
    return decided(verdict, "base model", waits=False)


@step("validate_data", "choose_base", "accuracy_gate")
def fine_tune(store: Store, run: Run, validated: Result, trained: Result, accepted: Result) -> Result:
    """Fine-tune the accepted base model; whichever of the two has less validation loss is the candidate."""
    from fmnist_tasks.data.dataset import load
    from fmnist_tasks.model import cnn, h5, novelty, tuning

    arrays, classes, profile = load(store, validated["dataset"]), _classes(validated), run.parameters.training
    if accepted["model_sha256"] != trained["model"]["sha256"]:
        raise ConflictError("the accuracy gate accepted another base model than this one; clear evaluate_base")
    base, seed = h5.load(get_verified(store, trained["model"]), "base model"), trained["seed"]
    recipe = {"recipe": asdict(profile), "seed": seed, "base": trained["model"]["sha256"]}
    states = _checkpoints(store, run, "tuned", validated, **recipe)
    with one_at_a_time(Settings.from_environment().training_lock):
        fit = tuning.tune(base, arrays, classes, profile, seed, states)
    tuned = _kept(store, run, "tuned", fit, arrays, classes)

    better = min(trained, tuned, key=_validation_loss)
    chosen = "tuned" if better is tuned else "base"
    classifier = h5.load(get_verified(store, better["model"]), f"{chosen} model")
    published = cnn.published(profile, classes, classifier, better["temperature"])
    candidate = novelty.publishable(published, arrays.training)
    _, familiarity = h5.predict(candidate, arrays.validation_images)
    gain = tuned["validation_accuracy"] - trained["validation_accuracy"]
    return {
        **tuned,
        "chosen": chosen,
        "candidate": {
            "model": put_blob(store, h5.save(candidate)),
            "novelty_threshold": novelty.threshold(familiarity),
            "validation_accuracy": better["validation_accuracy"],
            "temperature": better["temperature"],
        },
        "summary": (
            f"{tuned['summary']}; against the base {gain * 100:+.2f} points, and a validation loss of "
            f"{tuned['validation_loss']:.4f} for {trained['validation_loss']:.4f}; the {chosen} model goes on"
        ),
    }


@step("validate_data", "fine_tune")
def evaluate_tuned(store: Store, run: Run, validated: Result, tuned: Result) -> Result:
    """Measure the candidate: on the test images, on fake ones, against the champion, and on the clock."""
    from fmnist_tasks.data.dataset import load, packed
    from fmnist_tasks.evaluation import calibration, figures, metrics
    from fmnist_tasks.model import h5, novelty
    from fmnist_tasks.model.fakes import CLOSE, FAMILIES, SHOWN, fake_images

    checkpoints.clear(store, run.id)
    candidate, classes = tuned["candidate"], validated["dataset"]["classes"]
    arrays = load(store, validated["dataset"])
    images, labels = arrays.test_images, arrays.test_labels
    file = get_verified(store, candidate["model"])
    clock = time.monotonic()
    model = h5.load(file, "candidate model")
    load_seconds = time.monotonic() - clock
    threshold = candidate["novelty_threshold"]
    real = novelty.Group.predicted(model, images, [classes[label] for label in labels])
    fakes = {}
    for family in FAMILIES:
        fake = fake_images(family, images, _CLOSE_FAKES if family in CLOSE else _FAKES, seed=0)
        fakes[family] = novelty.Group.predicted(model, fake, [family] * len(fake))
    examples, pictured = novelty.examples(real, list(fakes.values()), classes, threshold)
    found = measured(store, run, "candidate", validated, candidate, labels, real.probabilities)
    calibrated = calibration.calibration(labels, real.probabilities)
    abstaining = calibration.abstention(labels, real.probabilities, _ANSWERED_RIGHTLY)
    with packed(probabilities=real.probabilities, familiarity=real.familiarity) as kept:
        predictions = put_blob(store, kept)
    return {
        **found,
        "calibration": {**calibrated, "temperature": candidate["temperature"]},
        "abstention": abstaining,
        "novelty": {
            "threshold": threshold,
            "real_let_through": float((real.familiarity >= threshold).mean()),
            "families": {
                family: {**metrics.detection(real.familiarity, fake.familiarity, threshold), "shown": family in SHOWN}
                for family, fake in fakes.items()
            },
            "examples": examples,
        },
        "champion": against_champion(store, classes, arrays, real.probabilities, candidate["validation_accuracy"]),
        "speed": {
            "single_ms": h5.single_milliseconds(model, images),
            "load_seconds": load_seconds,
            "bytes": candidate["model"]["bytes"],
        },
        "predictions": predictions,
        "pictures": {
            **found["pictures"],
            "candidate_calibration": put_blob(store, figures.reliability(calibrated, abstaining)),
            **mistakes(store, classes, images, labels, real.probabilities),
            "candidate_real_and_fake": put_blob(store, figures.predictions(examples, pictured)),
        },
    }


@step("validate_data", "fine_tune", "evaluate_tuned")
def promotion_gate(store: Store, run: Run, validated: Result, tuned: Result, evaluated: Result) -> Result:
    """Read the candidate back from the store, and decide whether it may become the champion."""
    from fmnist_tasks.data.dataset import load_test
    from fmnist_tasks.model import h5

    asked, candidate = policy(run), tuned["candidate"]
    images, _ = load_test(store, validated["dataset"])
    model = h5.load(get_verified(store, candidate["model"]), "candidate model")
    read_back = {"sha256": candidate["model"]["sha256"], "differing": differing(store, model, images, evaluated)}
    expected = identity(run, validated, candidate)
    repeated = champion.read_log(store).find_withdrawal(origin(run, validated, candidate))
    rows = [
        gate.same_origin(expected, evaluated),
        *promotion.checks(asked, {**evaluated, "read_back": read_back}),
        promotion.not_withdrawn(repeated and champion.describe_withdrawal("the candidate", *repeated)),
    ]
    return {
        **decided(gate.judge(expected, rows), "candidate", waits=run.parameters.approval),
        "champion": evaluated["champion"],
        "policy": asked.model_dump(),
        "policy_digest": digest_of(asked.model_dump()),
    }


def _classes(validated: Result) -> int:
    return len(validated["dataset"]["classes"])


def _checkpoints(store: Store, run: Run, name: str, validated: Result, **recipe: Any) -> Checkpoints:
    """The checkpoints of one fitting, which only the same run, data, code and recipe take up."""
    identity = {"data": validated["dataset"]["fingerprint"], "code": code_facts()["digest"], **recipe}
    return Checkpoints(store, run.id, name, identity)


def _kept(store: Store, run: Run, name: str, fit: Fit, arrays: Arrays, classes: int) -> Result:
    """Keep a trained network as a classifier, with its learning curves and what it scores on validation.

    The validation loss is what is left at the temperature that the model would be published with.
    """
    from fmnist_tasks.evaluation import figures, metrics
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.cnn import trained
    from fmnist_tasks.model.temperature import best_temperature

    model = trained(run.parameters.training, classes, fit.model)
    curves = figures.learning_curves(fit.curves, f"{name} model")
    probabilities = h5.classify(model, arrays.validation_images)
    accuracy = metrics.accuracy(arrays.validation_labels, probabilities)
    temperature, loss = best_temperature(arrays.validation_labels, probabilities)
    return {
        **fit.as_json(),
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "temperature": temperature,
        "model": put_blob(store, h5.save(model)),
        "weights": model.count_params(),
        "pictures": {f"{name}_learning_curves": put_blob(store, curves)},
        "summary": (
            f"{name} model: {len(fit.curves['loss'])} epochs, training accuracy {fit.train_accuracy:.2%}, "
            f"validation accuracy {accuracy:.2%}"
        ),
    }
