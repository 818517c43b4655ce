"""What is asked of a candidate, on figures made by hand: both sides of every bound, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fmnist_tasks.evaluation import metrics, promotion
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.verdict import Check

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
    family = {"auroc": 1.0, "fpr99": 0.0}
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
        (("novelty", "families", "digits", "fpr99"), "digits, FPR at 99 % TPR"),
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
        ({"auroc": 0.995, "fpr99": 0.01}, []),
        ({"auroc": 0.9949, "fpr99": 0.01}, ["digits, AUROC"]),
        ({"auroc": 0.995, "fpr99": 0.0101}, ["digits, FPR at 99 % TPR"]),
    ],
)
def test_novelty_by_family(row: dict[str, float], names: list[str]) -> None:
    families = {**figures()["novelty"]["families"], "digits": row, "not judged": {"auroc": 0.1, "fpr99": 1.0}}
    assert failed(novelty={"families": families}) == dict.fromkeys(names, "reject")


def test_the_model_that_was_read_back_must_be_the_one_of_the_figures() -> None:
    row = promotion.same_bytes({"read_back": {"sha256": None, "differing": 0}, "model_sha256": None})
    assert not row.passed


@pytest.mark.parametrize("significance", [0.03125, 0.0313])
def test_a_difference_is_proved_below_the_significance_and_not_at_it(significance: float) -> None:
    """Six of six images: p = 2/64 for all classes together; 1/64 for the one class, twice that for two classes."""
    asked = read_policy({name: {"significance": significance} for name in ("champion", "classes")})
    compared = champion(0, 6)
    compared["classes"][0]["only_champion"] = 6
    failing = {row.name for row in promotion.checks(asked, figures(champion=compared)) if not row.passed}
    assert failing == (set() if significance == 0.03125 else {"champion", "classes against champion"})


@pytest.mark.parametrize("otherwise", ["reject", "hold"])
def test_what_a_failure_does_is_said_by_the_policy_for_each_section(otherwise: str) -> None:
    sections = ("accuracy", "classes", "calibration", "novelty", "speed")
    everywhere = {name: {"otherwise": otherwise} for name in sections}
    asked = read_policy({**everywhere, "champion": {"worse": otherwise, "undecided": otherwise}})
    compared = champion(20, 40, candidate=0.9)
    compared["classes"][0]["only_champion"] = 6
    failing = figures(
        right=5000,
        champion=compared,
        calibration={"error": 0.5},
        novelty={"families": {name: {"auroc": 0.5, "fpr99": 1.0} for name in ASKED.novelty.families}},
        speed={"single_ms": 1e3, "load_seconds": 1e3, "bytes": 1e9},
    )
    rows = {row.name: row.outcome for row in promotion.checks(asked, failing)}
    assert rows == {**dict.fromkeys(rows, otherwise), "the same bytes": "passed"}
    undecided = promotion.against_champion(asked.champion, figures(champion=champion(0, 0, candidate=0.9)))
    assert undecided.outcome == otherwise


UNDECIDED = "3 test images are right with it only, 2 with v1 only (p = 1.000): no difference proved"
TOLD = {  # value, bound and reason where all passes and no difference to the champion is proved
    "accuracy": (
        0.93,
        "≥ 92.00%",
        "test accuracy is 93.00%, at least the bound of 92.00% (95 % interval 92.48% to 93.48%)",
    ),
    "champion": (1.0, "not worse (exact McNemar test, p < 0.05)", f"{UNDECIDED}; on validation 95.00% against 94.00%"),
    "recall of each class": (
        0.93,
        "≥ 70.00%",
        "the lowest recall of a class (shirt) is 93.00%, at least the bound of 70.00%",
    ),
    "classes against champion": (
        1.0,
        "none worse (Holm, p < 0.05)",
        "no class is provably recognised more rarely than by the champion (least p = 1.000)",
    ),
    "calibration": (
        0.005,
        "≤ 0.0150",
        "the expected calibration error is 0.0050, at most the bound of 0.0150 (95 % interval 0.0030 to 0.0090)",
    ),
    "digits, AUROC": (1.0, "≥ 0.9950", "AUROC of digits is 1.0000, at least the bound of 0.9950"),
    "digits, FPR at 99 % TPR": (0.0, "≤ 1.00%", "FPR of digits at 99 % TPR is 0.00%, at most the bound of 1.00%"),
    "the same bytes": (
        0,
        "no prediction differs",
        "model 0123456789ab was read back from the store; 0 predictions differ from those judged",
    ),
    "one image": (
        1.0,
        "≤ 50.0",
        "the 95th percentile of the time for one image, in milliseconds, is 1.0, at most the bound of 50.0",
    ),
    "loading": (1.0, "≤ 20.0", "seconds to load is 1.0, at most the bound of 20.0"),
    "size": (1_000_000, "≤ 10,000,000", "the size in bytes is 1,000,000, at most the bound of 10,000,000"),
}


def test_every_check_tells_its_value_its_bound_and_its_reason() -> None:
    sha256 = "0123456789abcdef" * 4
    found = figures(champion=champion(3, 2, candidate=0.95), model_sha256=sha256)
    found["read_back"]["sha256"] = sha256
    rows = {row.name: (row.value, row.bound, row.reason) for row in promotion.checks(ASKED, found)}
    assert {name: rows[name] for name in TOLD} == TOLD


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("accuracy", "test accuracy is missing or no number (None); ≥ 92.00% is asked"),
        ("champion", "the candidate was not compared with the champion"),
        (
            "recall of each class",
            "the lowest recall of a class (None) is missing or no number (None); ≥ 70.00% is asked",
        ),
        ("classes against champion", "the candidate was not compared with the champion"),
        ("calibration", "the expected calibration error is missing or no number (None); ≤ 0.0150 is asked"),
        ("digits, AUROC", "AUROC of digits is missing or no number (None); ≥ 0.9950 is asked"),
        ("the same bytes", "the model was not read back from the store"),
        ("size", "the size in bytes is missing or no number (None); ≤ 10,000,000 is asked"),
    ],
)
def test_a_check_without_figures_tells_what_is_missing(name: str, reason: str) -> None:
    rows = {row.name: row for row in promotion.checks(ASKED, {})}
    assert rows[name] == Check(name, None, TOLD[name][1], False, reason, "reject")


@pytest.mark.parametrize("name", ["accuracy", "calibration"])
def test_an_interval_is_told_where_there_is_one(name: str) -> None:
    section = {"accuracy": "test", "calibration": "calibration"}[name]
    found = figures()
    del found[section]["interval"]
    row = {row.name: row for row in promotion.checks(ASKED, found)}[name]
    assert row.passed
    assert "interval" not in row.reason
    row = {row.name: row for row in promotion.checks(ASKED, {section: {"interval": [0.1, 0.2]}})}[name]
    assert row.outcome == "reject"
    assert "interval" not in row.reason


@pytest.mark.parametrize(
    ("compared", "passed", "told"),
    [
        (champion(20, 40), False, "20 test images are right with it only, 40 with v1 only (p = 0.013): provably worse"),
        (champion(40, 20), True, "40 test images are right with it only, 20 with v1 only (p = 0.013): provably better"),
    ],
)
def test_a_proved_difference_is_told_with_its_direction(compared: dict[str, Any], passed: bool, told: str) -> None:
    row = promotion.against_champion(ASKED.champion, figures(champion=compared))
    assert row == Check("champion", pytest.approx(0.0135, abs=1e-4), TOLD["champion"][1], passed, told, "reject")


def test_the_classes_that_got_worse_are_named() -> None:
    compared = champion(20, 40)
    compared["classes"] = [
        {"class": name, "only_candidate": 0, "only_champion": lost} for name, lost in (("shirt", 10), ("bag", 9))
    ]
    row = promotion.classes_against_champion(ASKED.classes, figures(champion=compared))
    reason = "provably recognised more rarely than by the champion: shirt (p = 0.0020), bag (p = 0.0020)"
    bound = TOLD["classes against champion"][1]
    assert row == Check("classes against champion", pytest.approx(1 / 512), bound, False, reason, "hold")


COMPARISONS = ["champion", "classes against champion"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_first_model_has_no_champion_to_be_compared_with(name: str) -> None:
    row = {row.name: row for row in promotion.checks(ASKED, figures(champion=None))}[name]
    assert row == Check(name, None, TOLD[name][1], True, "there is no champion yet", row.otherwise)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_champion_of_other_classes_is_named_with_its_classes(name: str) -> None:
    other = {"version": "v1", "other_classes": ["cat", "dog"]}
    row = {row.name: row for row in promotion.checks(ASKED, figures(champion=other))}[name]
    reason = "the champion v1 knows other classes (['cat', 'dog']), so that nothing compares"
    assert row == Check(name, None, TOLD[name][1], False, reason, "hold")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("champion", "the comparison with the champion is incomplete ({'version': 'v1'})"),
        ("classes against champion", "the comparison by class with the champion is incomplete"),
    ],
)
def test_a_comparison_that_is_incomplete_is_told(name: str, reason: str) -> None:
    row = {row.name: row for row in promotion.checks(ASKED, figures(champion={"version": "v1"}))}[name]
    assert row == Check(name, None, TOLD[name][1], False, reason, "reject")


@pytest.mark.parametrize(("found", "value"), [(0, 0), (3, 3), (math.nan, None), ("0", None)])
def test_the_number_of_differing_predictions_is_told_if_it_is_a_number(found: object, value: int | None) -> None:
    row = promotion.same_bytes(figures(read_back={"sha256": "m" * 64, "differing": found}))
    assert row.value == value
