"""Measuring a model on the test images, and deciding by the policy whether it goes on; for the steps that do."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from fmnist_tasks.evaluation import gate
from fmnist_tasks.evaluation.policy import Policy, read_policy
from fmnist_tasks.provenance import code_facts
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.blobs import Reference, open_verified, put_blob
from fmnist_tasks.registry.releases import find_origin
from fmnist_tasks.registry.store import Store
from fmnist_tasks.service import open_release
from fmnist_tasks.steps.step import Result, Run

if TYPE_CHECKING:
    import keras
    import numpy as np

    from fmnist_tasks.data.dataset import Arrays

log = logging.getLogger(__name__)

_MISTAKES = 40  # wrong answers that are shown


def policy(run: Run) -> Policy:
    """The policy of the project with what this run asks otherwise."""
    return read_policy(run.parameters.policy_changes)


def identity(run: Run, validated: Result, candidate: Result) -> gate.Identity:
    """What figures and verdict of this run's candidate must belong to."""
    code = code_facts()["digest"]
    return gate.Identity(run.id, candidate["model"]["sha256"], validated["dataset"]["fingerprint"], code)


def origin(run: Run, validated: Result, candidate: Result) -> champion.Origin:
    """What this run's candidate comes from."""
    fingerprint, code = validated["dataset"]["fingerprint"], code_facts()["digest"]
    return find_origin(candidate["model"]["sha256"], fingerprint, code, run.parameters.as_json())


def differing(store: Store, model: keras.Model, images: np.ndarray, evaluated: Result) -> int:
    """How many of a model's predictions on images (N, 28, 28) are not, bit for bit, those that were judged."""
    import numpy as np

    from fmnist_tasks.data.npz import unpack
    from fmnist_tasks.model import h5

    with open_verified(store, evaluated["predictions"]) as file:
        judged = unpack(file, "predictions", "probabilities", "familiarity")
    # NaN differs from itself, so that predictions which are no numbers never agree.
    return sum(int(np.sum(a != b)) for a, b in zip(h5.predict(model, images), judged, strict=True))


def decided(verdict: gate.Verdict, who: str, *, waits: bool) -> Result:
    """The verdict as a result: a rejection unless it promotes, or holds and a person will be asked."""
    for check in verdict.checks:
        log.info("%s, %s: %s, %s", who, check.name, check.outcome, check.reason)
    if verdict.decision == "promote":
        accuracy = next(check.reason for check in verdict.checks if check.name == "accuracy")
        return {**verdict.as_json(), "summary": f"{who} passes {len(verdict.checks)} checks: {accuracy}"}
    if verdict.decision == "hold" and waits:
        return {**verdict.as_json(), "summary": f"{who} is held for a user to decide: {verdict.failures}"}
    rejection = f"{who} rejected: {verdict.failures}. Nothing is promoted"
    return {**verdict.as_json(), "summary": rejection, "rejection": rejection}


def mistakes(
    store: Store, classes: list[str], images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Reference]:
    """A picture, if there are any, of the surest wrong answers on images (N, 28, 28): what is shown, and the answer."""
    from fmnist_tasks.evaluation import figures, metrics

    chosen = metrics.surest_mistakes(labels, probabilities, _MISTAKES)
    answers = probabilities[chosen].argmax(axis=1)
    rows = [
        {"truth": classes[label], "answer": classes[answer]}
        for label, answer in zip(labels[chosen], answers, strict=True)
    ]
    return {"candidate_mistakes": put_blob(store, figures.predictions(rows, images[chosen]))} if rows else {}


def against_champion(
    store: Store, classes: list[str], arrays: Arrays, probabilities: np.ndarray, validation_accuracy: float
) -> Result | None:
    """The champion in service on the same images as the candidate, whose probabilities (N, classes) are given."""
    from fmnist_tasks.evaluation import metrics
    from fmnist_tasks.model import h5

    entry = champion.champion(store)
    if entry is None:
        return None
    facts = {"version": entry.version, "sequence": entry.sequence}
    release = open_release(store, entry.version)
    if release.manifest["classes"] != classes:
        return {**facts, "other_classes": release.manifest["classes"]}
    theirs = h5.classify(release.model, arrays.test_images)
    on_validation = h5.classify(release.model, arrays.validation_images)
    return {
        **facts,
        **metrics.compared(arrays.test_labels, probabilities, theirs, classes),
        "validation_accuracy": metrics.accuracy(arrays.validation_labels, on_validation),
        "candidate_validation_accuracy": validation_accuracy,
    }


def measured(
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
