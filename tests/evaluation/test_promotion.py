"""What is asked of a candidate, on figures made by hand: both sides of every bound, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fmnist_tasks.evaluation import metrics, promotion
from fmnist_tasks.evaluation.policy import read_policy

CLASSES = ["shirt", "bag"]
ASKED = read_policy({})


def answers(right: int, count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels, two classes by turns, and probabilities of which that many are right, the wrong ones last."""
    labels = np.arange(count) % 2
    given = np.where(np.arange(count) < right, labels, 1 - labels)
    return labels, np.eye(2)[given]


def figures(right: int = 9300, **changes: Any) -> dict[str, Any]:
    """Figures of a candidate that passes everything, but for the changes."""
    labels, probabilities = answers(right)
    family = {"auroc": 1.0, "fpr95": 0.0}
    return {
        "model_sha256": "m" * 64,
        "test": metrics.classification(labels, probabilities, CLASSES),
        "champion": None,
        "calibration": {"error": 0.005, "interval": [0.003, 0.009]},
        "novelty": {"families": dict.fromkeys(ASKED.novelty.families, family)},
        "read_back": {"sha256": "m" * 64, "differing": 0},
        "speed": {"single_ms": 1.0, "load_seconds": 1.0, "bytes": 1_000_000},
        **changes,
    }


def failed(**changes: Any) -> dict[str, str]:
    """Names and outcomes of the checks that are not passed."""
    return {row.name: row.outcome for row in promotion.checks(ASKED, figures(**changes)) if not row.passed}


def champion(only_candidate: int, only_champion: int, candidate: float = 0.94, theirs: float = 0.94) -> dict[str, Any]:
    return {
        "version": "v1",
        "only_candidate": only_candidate,
        "only_champion": only_champion,
        "candidate_validation_accuracy": candidate,
        "validation_accuracy": theirs,
        "classes": [{"class": name, "only_candidate": 0, "only_champion": 0} for name in CLASSES],
    }


def test_a_good_candidate_passes_every_check() -> None:
    rows = promotion.checks(ASKED, figures())
    assert {row.outcome for row in rows} == {"passed"}
    assert len(rows) == 31


@pytest.mark.parametrize(("right", "outcome"), [(9199, {"accuracy": "reject"}), (9200, {})])
def test_accuracy_of_predictions(right: int, outcome: dict[str, str]) -> None:
    assert failed(right=right) == outcome
    row = promotion.accuracy(ASKED.accuracy, figures(right))
    assert "95 % interval 91.4" in row.reason


def test_figures_that_are_missing_reject() -> None:
    rows = promotion.checks(ASKED, {})
    assert {row.outcome for row in rows} == {"reject"}
    assert all(row.value is None for row in rows)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (("test", "accuracy"), "accuracy"),
        (("calibration", "error"), "calibration"),
        (("read_back", "differing"), "the same bytes"),
        (("speed", "single_ms"), "one image"),
        (("speed", "load_seconds"), "loading"),
        (("speed", "bytes"), "size"),
        (("novelty", "families", "digits", "auroc"), "digits, AUROC"),
        (("novelty", "families", "digits", "fpr95"), "digits, FPR95"),
        (("test", "classes", 1, "recall"), "recall of each class"),
        (("champion", "only_champion"), "champion"),
        (("champion", "validation_accuracy"), "champion"),
        (("champion", "classes", 0, "only_candidate"), "classes against champion"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, None, "0", math.inf])
def test_a_figure_that_is_no_number_rejects(place: tuple[Any, ...], name: str, value: object) -> None:
    found = figures(champion=champion(10, 0))
    inner: Any = found
    for step in place[:-1]:
        inner[step] = dict(inner[step]) if isinstance(inner[step], dict) else list(inner[step])
        inner = inner[step]
    inner[place[-1]] = value
    outcomes = {row.name: row.outcome for row in promotion.checks(ASKED, found) if not row.passed}
    assert outcomes == {name: "reject"}


@pytest.mark.parametrize(
    ("compared", "outcome"),
    [
        (champion(50, 100), {"champion": "reject"}),
        (champion(100, 50), {}),
        (champion(50, 55), {}),
        (champion(50, 55, candidate=0.9399), {"champion": "hold"}),
        (champion(50, 55, candidate=0.9401), {}),
        (champion(0, 0), {}),
        (champion(0, 5), {}),  # p = 0.0625
        (champion(0, 6), {"champion": "reject"}),  # p = 0.03125
        (champion(0, 6, candidate=0.99), {"champion": "reject"}),
    ],
)
def test_against_the_champion(compared: dict[str, Any], outcome: dict[str, str]) -> None:
    assert failed(champion=compared) == outcome


def test_a_candidate_that_was_not_compared_rejects() -> None:
    found = figures()
    del found["champion"]
    outcomes = {row.name: row.outcome for row in promotion.checks(ASKED, found) if not row.passed}
    assert outcomes == {"champion": "reject", "classes against champion": "reject"}


def test_a_champion_of_other_classes_is_for_a_person_to_decide() -> None:
    other = {"version": "v1", "sequence": 1, "other_classes": ["cat", "dog"]}
    assert failed(champion=other) == {"champion": "hold", "classes against champion": "hold"}


@pytest.mark.parametrize(("lost", "outcome"), [(5, {}), (6, {"classes against champion": "hold"})])
def test_a_class_that_got_worse_holds(lost: int, outcome: dict[str, str]) -> None:
    """Six of six: p = 1/64, twice that for two classes; five of five: p = 1/32, twice that is above 0.05."""
    compared = champion(20, 10)
    compared["classes"][0] = {"class": "shirt", "only_candidate": 0, "only_champion": lost}
    assert failed(champion=compared) == outcome


@pytest.mark.parametrize(("recall", "outcome"), [(0.6999, {"recall of each class": "hold"}), (0.7, {})])
def test_the_floor_of_each_class(recall: float, outcome: dict[str, str]) -> None:
    found = figures()["test"]
    found["classes"][0]["recall"] = recall
    assert failed(test=found) == outcome


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"calibration": {"error": 0.0150}}, {}),
        ({"calibration": {"error": 0.0151}}, {"calibration": "hold"}),
        ({"read_back": {"sha256": "m" * 64, "differing": 1}}, {"the same bytes": "reject"}),
        ({"read_back": {"sha256": "x" * 64, "differing": 0}}, {"the same bytes": "reject"}),
        ({"speed": {"single_ms": 50.1, "load_seconds": 1.0, "bytes": 1}}, {"one image": "hold"}),
        ({"speed": {"single_ms": 50.0, "load_seconds": 20.1, "bytes": 1}}, {"loading": "hold"}),
        ({"speed": {"single_ms": 50.0, "load_seconds": 20.0, "bytes": 10_000_000}}, {}),
        ({"speed": {"single_ms": 50.0, "load_seconds": 20.0, "bytes": 10_000_001}}, {"size": "hold"}),
    ],
)
def test_the_other_bounds(changes: dict[str, Any], outcome: dict[str, str]) -> None:
    assert failed(**changes) == outcome


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"auroc": 0.995, "fpr95": 0.01}, []),
        ({"auroc": 0.9949, "fpr95": 0.01}, ["digits, AUROC"]),
        ({"auroc": 0.995, "fpr95": 0.0101}, ["digits, FPR95"]),
    ],
)
def test_novelty_by_family(row: dict[str, float], names: list[str]) -> None:
    families = {**figures()["novelty"]["families"], "digits": row, "not judged": {"auroc": 0.1, "fpr95": 1.0}}
    assert failed(novelty={"families": families}) == dict.fromkeys(names, "reject")


def test_the_model_that_was_read_back_must_be_the_one_of_the_figures() -> None:
    row = promotion.same_bytes({"read_back": {"sha256": None, "differing": 0}, "model_sha256": None})
    assert not row.passed


def test_every_row_says_something() -> None:
    for row in promotion.checks(ASKED, figures(champion=champion(3, 2))):
        assert row.name
        assert row.bound
        assert row.reason
