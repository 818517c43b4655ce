"""The steps of the task groups `base_model` and `tuned_model`: train, measure, judge."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.evaluation import gate
from fmnist_tasks.provenance import code_facts
from fmnist_tasks.registry import champion, checkpoints
from fmnist_tasks.registry.blobs import get_verified, put_blob
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.step import Result, Run, step
from fmnist_tasks.turns import one_at_a_time
from fmnist_tasks.verdict import Check

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.dataset import Arrays
    from fmnist_tasks.model.training import Fit

NOISE_RECOGNISED = 0.95  # share of random images that must be called novel
_NOISE = ("uniform noise", "Gaussian noise")
_FAKES = 500  # images of each family of fake ones


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
    """The candidate that is best on the validation images becomes the base model."""
    best = max(candidates, key=_merit)
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
    return _measured(store, run, "base", validated, trained, labels, h5.classify(model, images))


@step("validate_data", "choose_base", "evaluate_base")
def accuracy_gate(store: Store, run: Run, validated: Result, trained: Result, evaluated: Result) -> Result:
    """Stop the run unless the base model reaches the accuracy threshold on the test images."""
    return _judged("base model", identity(run, validated, trained), evaluated, [_accuracy(run, evaluated)])


@step("validate_data", "choose_base", "accuracy_gate")
def fine_tune(store: Store, run: Run, validated: Result, trained: Result, accepted: Result) -> Result:
    """Fine-tune the accepted base model; whichever of the two is better on the validation images is the candidate."""
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

    chosen, better = ("tuned", tuned) if _merit(tuned) > _merit(trained) else ("base", trained)
    classifier = cnn.published(profile, classes, h5.load(get_verified(store, better["model"]), chosen))
    candidate = novelty.publishable(classifier, arrays.train_images)
    _, familiarity = h5.predict(candidate, arrays.validation_images)
    gain = tuned["validation_accuracy"] - trained["validation_accuracy"]
    return {
        **tuned,
        "chosen": chosen,
        "candidate": {
            "model": put_blob(store, h5.save(candidate)),
            "novelty_threshold": novelty.threshold(familiarity),
            "validation_accuracy": better["validation_accuracy"],
        },
        "summary": f"{tuned['summary']}, {gain * 100:+.2f} points against the base; the {chosen} model goes on",
    }


@step("validate_data", "fine_tune")
def evaluate_tuned(store: Store, run: Run, validated: Result, tuned: Result) -> Result:
    """Measure the candidate on the test images and on fake ones, and keep its predictions for later proof."""
    from fmnist_tasks.data.dataset import load_test, packed
    from fmnist_tasks.evaluation import figures, metrics
    from fmnist_tasks.model import h5, novelty

    checkpoints.clear(store, run.id)
    candidate, classes = tuned["candidate"], validated["dataset"]["classes"]
    images, labels = load_test(store, validated["dataset"])
    model = h5.load(get_verified(store, candidate["model"]), "candidate model")
    threshold = candidate["novelty_threshold"]
    real = novelty.Group.predicted(model, images, [classes[label] for label in labels])
    fakes = [
        novelty.Group.predicted(model, fake, [family] * len(fake))
        for family, fake in novelty.fake_images(images, _FAKES, seed=0).items()
    ]
    examples, shown = novelty.examples(real, fakes, classes, threshold)
    measured = _measured(store, run, "candidate", validated, candidate, labels, real.probabilities)
    with packed(probabilities=real.probabilities, familiarity=real.familiarity) as file:
        predictions = put_blob(store, file)
    return {
        **measured,
        "novelty": {
            "threshold": threshold,
            "real_let_through": float((real.familiarity >= threshold).mean()),
            "families": {
                fake.truth[0]: metrics.detection(real.familiarity, fake.familiarity, threshold) for fake in fakes
            },
            "examples": examples,
        },
        "predictions": predictions,
        "pictures": {
            **measured["pictures"],
            "candidate_real_and_fake": put_blob(store, figures.predictions(examples, shown)),
        },
    }


@step("validate_data", "fine_tune", "evaluate_tuned")
def promotion_gate(store: Store, run: Run, validated: Result, tuned: Result, evaluated: Result) -> Result:
    """Decide whether the candidate may become the champion."""
    families = evaluated.get("novelty", {}).get("families", {})
    checks = [_accuracy(run, evaluated)]
    for family in _NOISE:
        recognised = families.get(family, {}).get("recognised")
        checks.append(gate.at_least(family, recognised, NOISE_RECOGNISED, f"the share of {family} called no clothing"))
    current = champion.champion(store)
    verdict = _judged("candidate", identity(run, validated, tuned["candidate"]), evaluated, checks)
    return {**verdict, "champion": current.as_json() if current else None}


def identity(run: Run, validated: Result, candidate: Result) -> gate.Identity:
    """What figures and verdict of this run's candidate must belong to."""
    return gate.Identity(run.id, candidate["model"]["sha256"], validated["dataset"]["fingerprint"])


def _classes(validated: Result) -> int:
    return len(validated["dataset"]["classes"])


def _merit(figures: Result) -> tuple[float, float]:
    """The better of two models is the one with the greater: validation accuracy, then less validation loss."""
    return figures["validation_accuracy"], -figures["validation_loss"]


def _checkpoints(store: Store, run: Run, name: str, validated: Result, **recipe: Any) -> Checkpoints:
    """The checkpoints of one fitting, which only the same run, data, code and recipe take up."""
    identity = {"data": validated["dataset"]["fingerprint"], "code": code_facts()["digest"], **recipe}
    return Checkpoints(store, run.id, name, identity)


def _accuracy(run: Run, evaluated: Result) -> Check:
    accuracy = evaluated.get("test", {}).get("accuracy")
    return gate.at_least("accuracy", accuracy, run.parameters.accuracy_threshold, "test accuracy")


def _judged(who: str, expected: gate.Identity, evaluated: Result, checks: list[Check]) -> Result:
    verdict = gate.judge(expected, [gate.same_origin(expected, evaluated), *checks])
    if verdict.decision == "promote":
        return {**verdict.as_json(), "summary": f"{who} passes: {'; '.join(check.reason for check in checks)}"}
    rejection = f"{who} rejected: {verdict.failures}. Nothing is promoted"
    return {**verdict.as_json(), "summary": rejection, "rejection": rejection}


def _kept(store: Store, run: Run, name: str, fit: Fit, arrays: Arrays, classes: int) -> Result:
    """Keep a trained network as a classifier, with its learning curves and what it scores on validation."""
    from fmnist_tasks.evaluation import figures, metrics
    from fmnist_tasks.model import h5
    from fmnist_tasks.model.cnn import trained

    model = trained(run.parameters.training, classes, fit.model)
    curves = figures.learning_curves(fit.curves, f"{name} model")
    probabilities = h5.classify(model, arrays.validation_images)
    accuracy, loss = metrics.accuracy_and_loss(arrays.validation_labels, probabilities)
    return {
        **fit.as_json(),
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "model": put_blob(store, h5.save(model)),
        "weights": model.count_params(),
        "pictures": {f"{name}_learning_curves": put_blob(store, curves)},
        "summary": (
            f"{name} model: {len(fit.curves['loss'])} epochs, training accuracy {fit.train_accuracy:.2%}, "
            f"validation accuracy {accuracy:.2%}"
        ),
    }


def _measured(
    store: Store, run: Run, name: str, validated: Result, judged: Result, labels: np.ndarray, probabilities: np.ndarray
) -> Result:
    """Figures of a model's answers on the test images, and what they belong to."""
    from fmnist_tasks.evaluation import figures, metrics

    classes = validated["dataset"]["classes"]
    test = metrics.classification(labels, probabilities, classes)
    return {
        **asdict(identity(run, validated, judged)),
        "test": test,
        "pictures": {f"{name}_confusion": put_blob(store, figures.confusion(test["confusion"], classes))},
        "summary": f"{name} model: test accuracy {test['accuracy']:.2%}, mean F1 {test['means']['f1']:.2%}",
    }
