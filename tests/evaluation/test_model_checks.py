"""The checks of a candidate, on constructed metrics: both sides of each threshold, and missing metrics."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fmnist_tasks.evaluation import metrics, model_checks
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.schemas.evaluation import (
    CandidateEvaluation,
    ChampionComparison,
    Check,
    Evaluation,
    OodFamily,
    Outcome,
)
from fmnist_tasks.schemas.policy import Policy
from tests.support.documents import make_comparison

CLASSES = ["shirt", "bag"]
POLICY = read_policy({})
MODEL = "0123456789abcdef" * 4


def make_predictions(correct: int, count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) of two alternating classes, and probabilities (N, 2) of which the first `correct` are correct."""
    labels = np.arange(count) % 2
    predicted = np.where(np.arange(count) < correct, labels, 1 - labels)
    return labels, np.eye(2)[predicted]


def make_family(auroc: float = 1.0, fpr99: float = 0.0) -> OodFamily:
    return OodFamily(auroc=auroc, fpr99=fpr99, detected=1.0, in_training=False)


def make_metrics_json(correct: int = 9300, **changes: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics, as JSON, of a candidate that passes every check, with these changes in its sections."""
    labels, probabilities = make_predictions(correct)
    sections: dict[str, Any] = {
        "test": metrics.measure_classification(labels, probabilities, CLASSES).to_json(),
        "champion": None,
        "calibration": {"error": 0.005, "interval": [0.003, 0.009], "bins": []},
        "ood": {
            "threshold": 1.0,
            "accepted": 0.99,
            "families": {name: make_family().to_json() for name in POLICY.ood.families},
            "examples": [],
        },
        "selective_prediction": {"accuracy": 0.99, "coverage": 0.8, "confidence": 0.9, "curve": []},
        "serving": {"single_image_ms": 1.0, "load_seconds": 1.0, "bytes": 1_000_000},
    }
    for name, values in changes.items():
        sections[name] = values if values is None or sections[name] is None else sections[name] | values
    identity = {"run_id": "run-1", "model_sha256": MODEL, "data_fingerprint": "d" * 64, "code_digest": "c" * 64}
    return {**identity, "temperature": 1.0, **copy.deepcopy(sections)}


def make_metrics(correct: int = 9300, **changes: dict[str, Any] | None) -> CandidateEvaluation:
    return CandidateEvaluation.model_validate(make_metrics_json(correct, **changes))


def run_checks(candidate: CandidateEvaluation, policy: Policy = POLICY) -> dict[str, Check]:
    """Run all checks of a candidate; return them by name."""
    checks = model_checks.check_candidate(policy, candidate)
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks)
    return by_name


def find_failures(correct: int = 9300, **changes: dict[str, Any] | None) -> dict[str, Outcome]:
    """Names and outcomes of the checks that did not pass."""
    checks = run_checks(make_metrics(correct, **changes)).values()
    return {check.name: check.outcome for check in checks if not check.has_passed}


def test_a_good_candidate_passes_every_check() -> None:
    checks = run_checks(make_metrics())
    assert {check.outcome for check in checks.values()} == {"passed"}
    assert len(checks) == 30


@pytest.mark.parametrize(("correct", "outcome"), [(9199, {"accuracy": "reject"}), (9200, {})])
def test_the_accuracy_of_predictions_is_checked(correct: int, outcome: dict[str, str]) -> None:
    assert find_failures(correct) == outcome
    accuracy = model_checks.check_accuracy(POLICY.accuracy, make_metrics(correct).test)
    assert "95% confidence interval 91.4" in accuracy.message


METRICS: list[tuple[str | int, ...]] = [
    ("test", "accuracy"),
    ("calibration", "error"),
    ("serving", "single_image_ms"),
    ("serving", "load_seconds"),
    ("serving", "bytes"),
    ("ood", "families", "digits", "auroc"),
    ("ood", "families", "digits", "fpr99"),
    ("test", "classes", 1, "recall"),
    ("champion", "only_candidate"),
    ("champion", "only_champion"),
    ("champion", "validation_accuracy"),
    ("champion", "candidate_validation_accuracy"),
    ("champion", "classes", 0, "only_candidate"),
    ("champion", "classes", 0, "only_champion"),
]
SECTIONS: list[tuple[str | int, ...]] = [
    ("model_sha256",),
    ("test",),
    ("test", "interval"),
    ("test", "classes"),
    ("champion",),
    ("champion", "classes"),
    ("calibration",),
    ("calibration", "interval"),
    ("ood",),
    ("ood", "families"),
    ("serving",),
]


def find_parent(content: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    """The dictionary or list that has the last key of the path."""
    for key in path[:-1]:
        content = content[key]  # type: ignore[index]
    return content


@pytest.mark.parametrize("path", METRICS, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("value", [math.nan, None, "0", math.inf, -math.inf, True])
def test_a_metric_that_is_not_a_number_is_refused(path: tuple[str | int, ...], value: object) -> None:
    """It never reaches a check, since reading the metrics fails."""
    content = make_metrics_json(champion=make_comparison(10, 0).to_json())
    CandidateEvaluation.model_validate(content)
    find_parent(content, path)[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        CandidateEvaluation.model_validate(content)
    assert any(str(path[-1]) in error["loc"] for error in caught.value.errors())


@pytest.mark.parametrize("path", [*METRICS, *SECTIONS], ids=lambda path: ".".join(map(str, path)))
def test_a_metric_that_is_missing_is_refused(path: tuple[str | int, ...]) -> None:
    content = make_metrics_json(champion=make_comparison(10, 0).to_json())
    del find_parent(content, path)[path[-1]]
    with pytest.raises(ValidationError, match=rf"{path[-1]}\n  Field required"):
        CandidateEvaluation.model_validate(content)


@pytest.mark.parametrize(
    "path", [("test", "accuracy"), ("ood", "families", "digits", "fpr99"), ("champion", "only_champion")]
)
@pytest.mark.parametrize("value", [-1, 10_001.5])
def test_an_impossible_metric_is_refused(path: tuple[str, ...], value: float) -> None:
    content = make_metrics_json(champion=make_comparison(10, 0).to_json())
    find_parent(content, path)[path[-1]] = value
    with pytest.raises(ValidationError, match=rf"{path[-1]}\n  Input should be"):
        CandidateEvaluation.model_validate(content)


@pytest.mark.parametrize("section", ["test", "champion"])
def test_metrics_without_classes_are_refused(section: str) -> None:
    content = make_metrics_json(champion=make_comparison(10, 0).to_json())
    content[section]["classes"] = []
    with pytest.raises(ValidationError, match=r"classes\n  List should have at least 1 item"):
        CandidateEvaluation.model_validate(content)


def test_a_family_that_was_not_measured_rejects() -> None:
    families = {name: make_family().to_json() for name in POLICY.ood.families if name != "digits"}
    names = ["digits, AUROC", "digits, FPR at 99% TPR"]
    assert find_failures(ood={"families": families}) == dict.fromkeys(names, "reject")
    checks = run_checks(make_metrics(ood={"families": families}))
    assert [checks[name].value for name in names] == [None, None]
    assert [checks[name].message for name in names] == [
        "AUROC of digits is missing or not a number (None); required: ≥ 0.9950",
        "FPR of digits at 99% TPR is missing or not a number (None); required: ≤ 1.00%",
    ]


def test_families_that_were_not_measured_reject_even_if_the_policy_holds() -> None:
    policy = read_policy({"ood": {"on_failure": "hold"}})
    checks = model_checks.check_ood_detection(policy.ood, make_metrics(ood={"families": {}}))
    assert [(check.value, check.outcome) for check in checks] == [(None, "reject")] * 22


@pytest.mark.parametrize(
    ("champion", "outcome"),
    [
        (make_comparison(50, 100), {"champion": "reject"}),
        (make_comparison(100, 50), {}),
        (make_comparison(50, 55), {}),
        (make_comparison(50, 55, candidate=0.9399), {"champion": "hold"}),
        (make_comparison(50, 55, candidate=0.9401), {}),
        (make_comparison(0, 0), {}),
        (make_comparison(0, 5), {}),  # p = 0.0625
        (make_comparison(0, 6), {"champion": "reject"}),  # p = 0.03125
        (make_comparison(0, 6, candidate=0.99), {"champion": "reject"}),
    ],
)
def test_a_significantly_worse_candidate_is_rejected_and_an_inconclusive_one_may_be_held(
    champion: ChampionComparison, outcome: dict[str, str]
) -> None:
    assert find_failures(champion=champion.to_json()) == outcome


@pytest.mark.parametrize(("lost", "outcome"), [(5, {}), (6, {"class recall against champion": "hold"})])
def test_a_class_with_significantly_lower_recall_holds(lost: int, outcome: dict[str, str]) -> None:
    """Six of six images: p = 1/64, doubled for two classes; five of five: p = 1/32, doubled it is above 0.05."""
    assert find_failures(champion=make_comparison(20, 10, classes=[(0, lost), (0, 0)]).to_json()) == outcome


@pytest.mark.parametrize(("recall", "outcome"), [(0.6999, {"class recall": "hold"}), (0.7, {})])
def test_every_class_needs_the_minimum_recall(recall: float, outcome: dict[str, str]) -> None:
    classes = make_metrics_json()["test"]["classes"]
    classes[0]["recall"] = recall
    assert find_failures(test={"classes": classes}) == outcome


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"calibration": {"error": 0.0150}}, {}),
        ({"calibration": {"error": 0.0151}}, {"calibration": "hold"}),
        ({"serving": {"single_image_ms": 50.1, "load_seconds": 1.0, "bytes": 1}}, {"latency": "hold"}),
        ({"serving": {"single_image_ms": 50.0, "load_seconds": 20.1, "bytes": 1}}, {"load time": "hold"}),
        ({"serving": {"single_image_ms": 50.0, "load_seconds": 20.0, "bytes": 10_000_000}}, {}),
        ({"serving": {"single_image_ms": 50.0, "load_seconds": 20.0, "bytes": 10_000_001}}, {"size": "hold"}),
    ],
)
def test_calibration_latency_load_time_and_size_hold_above_their_thresholds(
    changes: dict[str, Any], outcome: dict[str, str]
) -> None:
    assert find_failures(**changes) == outcome


@pytest.mark.parametrize(
    ("family", "names"),
    [
        (make_family(0.995, 0.01), []),
        (make_family(0.9949, 0.01), ["digits, AUROC"]),
        (make_family(0.995, 0.0101), ["digits, FPR at 99% TPR"]),
    ],
)
def test_each_ood_family_has_two_thresholds(family: OodFamily, names: list[str]) -> None:
    families = make_metrics_json()["ood"]["families"]
    families |= {"digits": family.to_json(), "only reported": make_family(0.1, 1.0).to_json()}
    assert find_failures(ood={"families": families}) == dict.fromkeys(names, "reject")


@pytest.mark.parametrize("significance", [0.03125, 0.0313])
def test_a_difference_is_significant_below_the_level_and_not_at_it(significance: float) -> None:
    """Six of six images: p = 2/64 for all classes together; 1/64 for the one class, doubled for two classes."""
    policy = read_policy({name: {"significance": significance} for name in ("champion", "classes")})
    candidate = make_metrics(champion=make_comparison(0, 6, classes=[(0, 6), (0, 0)]).to_json())
    failing = {name for name, check in run_checks(candidate, policy).items() if not check.has_passed}
    assert failing == (set() if significance == 0.03125 else {"champion", "class recall against champion"})


@pytest.mark.parametrize("on_failure", ["reject", "hold"])
def test_the_policy_decides_for_each_section_what_a_failed_check_does(on_failure: str) -> None:
    sections = ("accuracy", "classes", "calibration", "ood", "serving")
    overrides = {name: {"on_failure": on_failure} for name in sections}
    champion_override = {"on_significantly_worse": on_failure, "on_inconclusive": on_failure}
    policy = read_policy({**overrides, "champion": champion_override})
    failing = make_metrics(
        correct=5000,
        champion=make_comparison(20, 40, candidate=0.9, classes=[(0, 6), (0, 0)]).to_json(),
        calibration={"error": 0.5},
        ood={"families": {name: make_family(0.5, 1.0).to_json() for name in POLICY.ood.families}},
        serving={"single_image_ms": 1e3, "load_seconds": 1e3, "bytes": 10**9},
    )
    outcomes = {name: check.outcome for name, check in run_checks(failing, policy).items()}
    assert outcomes == dict.fromkeys(outcomes, on_failure)
    inconclusive = model_checks.check_against_champion(policy.champion, make_comparison(0, 0, candidate=0.9))
    assert inconclusive.outcome == on_failure


EXPECTED = {  # value, threshold and message if all checks pass and the comparison with the champion is inconclusive
    "accuracy": (
        0.93,
        "≥ 92.00%",
        "test accuracy is 93.00%, at least the threshold of 92.00% (95% confidence interval 92.48% to 93.48%)",
    ),
    "champion": (
        1.0,
        "not significantly worse (exact McNemar test, level 0.05); if inconclusive, not less accurate on validation",
        (
            "validation accuracy is 95.00%, at least the champion's 94.00%, and the test images show no significant "
            "difference, p = 1.000 (test images classified correctly only by the candidate: 3, only by the champion: 2)"
        ),
    ),
    "class recall": (
        0.93,
        "≥ 70.00%",
        "the lowest recall of a class (shirt) is 93.00%, at least the threshold of 70.00%",
    ),
    "class recall against champion": (
        1.0,
        "no class significantly worse (one-sided McNemar tests, Holm's correction, level 0.05)",
        "no class has a significantly lower recall (lowest p = 1.000)",
    ),
    "calibration": (
        0.005,
        "≤ 0.0150",
        (
            "the expected calibration error is 0.0050, at most the threshold of 0.0150 "
            "(95% confidence interval 0.0030 to 0.0090)"
        ),
    ),
    "digits, AUROC": (1.0, "≥ 0.9950", "AUROC of digits is 1.0000, at least the threshold of 0.9950"),
    "digits, FPR at 99% TPR": (0.0, "≤ 1.00%", "FPR of digits at 99% TPR is 0.00%, at most the threshold of 1.00%"),
    "latency": (1.0, "≤ 50.0", "latency of one image (95th percentile, ms) is 1.0, at most the threshold of 50.0"),
    "load time": (1.0, "≤ 20.0", "load time (s) is 1.0, at most the threshold of 20.0"),
    "size": (1_000_000, "≤ 10,000,000", "size (bytes) is 1,000,000, at most the threshold of 10,000,000"),
}


def make_expected(name: str, value: Any, outcome: Outcome, message: str) -> dict[str, Any]:
    """A check with the expected threshold, as JSON."""
    return {"name": name, "value": value, "threshold": EXPECTED[name][1], "outcome": outcome, "message": message}


def test_every_check_has_a_value_a_threshold_and_a_message() -> None:
    checks = run_checks(make_metrics(champion=make_comparison(3, 2, candidate=0.95).to_json()))
    contents = {name: (check.value, check.threshold, check.message) for name, check in checks.items()}
    assert {name: contents[name] for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize("name", ["accuracy", "calibration"])
def test_the_message_has_the_interval_whatever_the_outcome(name: str) -> None:
    section = {"accuracy": "test", "calibration": "calibration"}[name]
    failing = {"accuracy": {"accuracy": 0.5}, "calibration": {"error": 0.5}}[name]
    failed = run_checks(make_metrics(**{section: failing | {"interval": [0.1, 0.2]}}))[name]
    assert not failed.has_passed
    interval = {"accuracy": "10.00% to 20.00%", "calibration": "0.1000 to 0.2000"}[name]
    assert failed.message.endswith(f"(95% confidence interval {interval})")


@pytest.mark.parametrize(
    ("champion", "outcome", "message"),
    [
        (
            make_comparison(20, 40),
            "reject",
            (
                "the candidate is significantly worse than the champion, p = 0.013 "
                "(test images classified correctly only by the candidate: 20, only by the champion: 40)"
            ),
        ),
        (
            make_comparison(40, 20),
            "passed",
            (
                "the candidate is significantly better than the champion, p = 0.013 "
                "(test images classified correctly only by the candidate: 40, only by the champion: 20)"
            ),
        ),
    ],
)
def test_a_significant_difference_is_described_with_its_direction(
    champion: ChampionComparison, outcome: Outcome, message: str
) -> None:
    result = model_checks.check_against_champion(POLICY.champion, champion)
    assert result.to_json() == make_expected("champion", pytest.approx(0.0135, abs=1e-4), outcome, message)


def test_classes_with_lower_recall_are_named() -> None:
    champion = make_comparison(20, 40, classes=[(0, 10), (0, 9)])
    result = model_checks.check_classes_against_champion(POLICY.classes, champion)
    message = "recall is significantly lower than the champion's: shirt (p = 0.002), bag (p = 0.002)"
    assert result.to_json() == make_expected("class recall against champion", pytest.approx(1 / 512), "hold", message)


@pytest.mark.parametrize(
    ("lost", "p_value"), [(9, "p = 0.004"), (10, "p = 0.002"), (11, "p < 0.001"), (5000, "p < 0.001")]
)
def test_a_p_value_below_a_thousandth_is_not_shown_as_zero(lost: int, p_value: str) -> None:
    """Eleven of eleven images: p = 2/2048."""
    result = model_checks.check_against_champion(POLICY.champion, make_comparison(0, lost))
    assert "significantly worse" in result.message
    assert f", {p_value} (" in result.message


@pytest.mark.parametrize(
    ("gained", "lost", "message"),
    [
        (25, 42, "significantly worse than the champion, p = 0.0498 ("),
        (10, 22, "no significant difference, p = 0.0501 ("),
    ],
)
def test_a_p_value_is_never_shown_as_equal_to_the_significance_level(gained: int, lost: int, message: str) -> None:
    assert message in model_checks.check_against_champion(POLICY.champion, make_comparison(gained, lost)).message


@pytest.mark.parametrize(("lost", "message"), [(11, "no significant difference, p = 0.00098"), (12, "p = 0.00049")])
def test_a_p_value_near_a_small_significance_level_is_shown_with_its_digits(lost: int, message: str) -> None:
    policy = POLICY.champion.model_copy(update={"significance": 0.0005})
    assert message in model_checks.check_against_champion(policy, make_comparison(0, lost)).message


def test_validation_accuracies_that_differ_by_one_image_are_shown_as_different() -> None:
    """Of 12,000 images; both would be 94.53%."""
    comparison = make_comparison(3, 2, candidate=11_343 / 12_000, champion=11_344 / 12_000)
    check = model_checks.check_against_champion(POLICY.champion, comparison)
    assert check.outcome == "hold"
    assert check.message.startswith("validation accuracy is 94.525%, below the champion's 94.533%, and ")


COMPARISONS = ["champion", "class recall against champion"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_without_a_champion_both_comparisons_pass(name: str) -> None:
    result = run_checks(make_metrics(champion=None))[name]
    assert result.to_json() == make_expected(name, None, "passed", "there is no champion yet")


@pytest.mark.parametrize("champion", [{"version": "v1"}, {"version": "v1", "sequence": 1}, {}])
def test_a_comparison_that_is_incomplete_is_refused(champion: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"champion\.only_candidate\n  Field required"):
        CandidateEvaluation.model_validate({**make_metrics_json(), "champion": champion})


def test_an_evaluation_of_the_base_model_is_not_accepted_for_a_candidate() -> None:
    content = make_metrics_json()
    base = {name: content[name] for name in Evaluation.model_fields}
    Evaluation.model_validate(base)
    with pytest.raises(ValidationError, match=r"ood\n  Field required"):
        CandidateEvaluation.model_validate(base)


def test_a_candidate_that_repeats_a_withdrawn_release_is_held() -> None:
    expected = {"name": "withdrawn releases", "value": None, "threshold": "none repeated"}
    assert model_checks.check_not_withdrawn(None).to_json() == {
        **expected,
        "outcome": "passed",
        "message": "the candidate does not repeat a withdrawn release",
    }
    held = {**expected, "outcome": "hold", "message": "it repeats v1"}
    assert model_checks.check_not_withdrawn("it repeats v1").to_json() == held
