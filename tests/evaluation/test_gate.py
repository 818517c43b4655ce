"""Checks and verdicts: thresholds, invalid values, and whose metrics they are."""

from __future__ import annotations

import math
from typing import Any, Protocol

import pytest
from pydantic import ValidationError

from fmnist_tasks.evaluation.gate import check_identity, check_maximum, check_minimum, decide_verdict, format_apart
from fmnist_tasks.schemas.evaluation import Check, Identity, OnFailure, Verdict

IDENTITY = Identity(run_id="run-1", model_sha256="a" * 64, data_fingerprint="d" * 64, code_digest="c" * 64)


class Compare(Protocol):
    def __call__(
        self, name: str, value: Any, threshold: float, what: str, on_failure: OnFailure = "reject", form: str = ".2%"
    ) -> Check: ...


@pytest.mark.parametrize(("correct", "passes"), [(9199, False), (9200, True), (9201, True), (10_000, True), (0, False)])
def test_a_minimum_passes_from_the_threshold_up(correct: int, passes: bool) -> None:
    assert check_minimum("accuracy", correct / 10_000, 0.92, "test accuracy").has_passed is passes


@pytest.mark.parametrize(("value", "passes"), [(0.0149, True), (0.015, True), (0.0151, False), (0.0, True)])
def test_a_maximum_passes_up_to_the_threshold(value: float, passes: bool) -> None:
    assert check_maximum("calibration", value, 0.015, "the error").has_passed is passes


@pytest.mark.parametrize("compare", [check_minimum, check_maximum])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.99", True, [0.99]])
def test_a_value_that_is_not_a_finite_number_rejects_whatever_the_policy_says(compare: Compare, value: object) -> None:
    check = compare("it", value, 0.5, "the metric", "hold")
    assert check.outcome == "reject"
    assert check.value is None
    assert f"the metric is missing or not a number ({value!r})" in check.message


@pytest.mark.parametrize(
    ("compare", "value", "passes", "message"),
    [
        (check_minimum, 0.7, True, "it is 70.00%, at least the threshold of 70.00%"),
        (check_minimum, 0.5, False, "it is 50.00%, below the threshold of 70.00%"),
        (check_maximum, 0.7, True, "it is 70.00%, at most the threshold of 70.00%"),
        (check_maximum, 0.9, False, "it is 90.00%, above the threshold of 70.00%"),
        (check_minimum, None, False, "it is missing or not a number (None); required: ≥ 70.00%"),
        (check_maximum, None, False, "it is missing or not a number (None); required: ≤ 70.00%"),
    ],
)
def test_a_check_names_its_value_and_the_side_of_the_threshold(
    compare: Compare, value: float | None, passes: bool, message: str
) -> None:
    check = compare("name", value, 0.7, "it")
    threshold, outcome = "≥ 70.00%" if compare is check_minimum else "≤ 70.00%", "passed" if passes else "reject"
    assert check.to_json() == {
        "name": "name",
        "value": value,
        "threshold": threshold,
        "outcome": outcome,
        "message": message,
    }


@pytest.mark.parametrize(
    ("value", "other", "form", "texts"),
    [
        (0.92, 0.92, ".2%", ("92.00%", "92.00%")),
        (0.91, 0.92, ".2%", ("91.00%", "92.00%")),
        (0.91996, 0.92, ".2%", ("91.996%", "92.000%")),
        (0.01504, 0.015, ".4f", ("0.01504", "0.01500")),
        (10_000_000.4, 10_000_000, ",.0f", ("10,000,000.4", "10,000,000.0")),
        (math.nextafter(0.5, 0), 0.5, ".1f", ("0.4999999999999999", "0.5000000000000000")),
    ],
)
def test_different_numbers_are_never_shown_as_equal(
    value: float, other: float, form: str, texts: tuple[str, str]
) -> None:
    assert format_apart(value, other, form) == texts


def test_a_value_just_below_the_threshold_is_shown_below_it() -> None:
    check = check_minimum("accuracy", 0.91996, 0.92, "test accuracy")
    assert (check.outcome, check.threshold) == ("reject", "≥ 92.000%")
    assert check.message == "test accuracy is 91.996%, below the threshold of 92.000%"


def test_a_metric_is_written_in_the_required_form() -> None:
    check = check_maximum("it", 12.34, 50, "milliseconds", form=".1f")
    assert (check.threshold, check.message) == ("≤ 50.0", "milliseconds is 12.3, at most the threshold of 50.0")


@pytest.mark.parametrize("compare", [check_minimum, check_maximum])
@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_not_finite_passes_nothing(compare: Compare, threshold: float) -> None:
    assert not compare("it", 0.99, threshold, "the metric").has_passed


def test_an_empty_list_of_checks_rejects() -> None:
    verdict = decide_verdict(IDENTITY, [])
    assert verdict.decision == "reject"
    assert verdict.failures == "there are no checks"


def test_one_failure_rejects_and_its_message_names_metric_and_threshold() -> None:
    good = check_minimum("accuracy", 0.95, 0.92, "test accuracy")
    bad = check_minimum("recall", 0.5, 0.7, "the recall of shirts")
    verdict = decide_verdict(IDENTITY, [good, bad])
    assert verdict.decision == "reject"
    assert verdict.failures == "the recall of shirts is 50.00%, below the threshold of 70.00%"
    assert decide_verdict(IDENTITY, [good]).decision == "promote"


def test_a_failed_check_may_hold_unless_another_rejects() -> None:
    good = check_minimum("accuracy", 0.95, 0.92, "test accuracy")
    held, rejected = check_minimum("it", 0.5, 0.7, "it", "hold"), check_minimum("it", 0.5, 0.7, "it", "reject")
    assert decide_verdict(IDENTITY, [good, held]).decision == "hold"
    assert decide_verdict(IDENTITY, [held, rejected, good]).decision == "reject"
    assert decide_verdict(IDENTITY, [rejected, held]).decision == "reject"


def test_a_verdict_is_stored_with_its_decision_its_identity_and_every_check() -> None:
    checks = [check_minimum("it", value, 0.7, "it", "hold") for value in (0.8, 0.5, None)]
    verdict = decide_verdict(IDENTITY, checks)
    stored = verdict.to_json()
    assert stored == {"decision": "reject", **IDENTITY.to_json(), "checks": [check.to_json() for check in checks]}
    assert [check["outcome"] for check in stored["checks"]] == ["passed", "hold", "reject"]
    assert Verdict.model_validate(stored) == verdict


def test_the_messages_of_all_failures_are_joined() -> None:
    checks = [check_minimum(name, value, 0.7, name) for name, value in (("a", 0.5), ("b", 0.8), ("c", 0.6))]
    expected = "a is 50.00%, below the threshold of 70.00%; c is 60.00%, below the threshold of 70.00%"
    assert decide_verdict(IDENTITY, checks).failures == expected


@pytest.mark.parametrize("name", Identity.model_fields)
def test_metrics_of_another_run_model_dataset_or_code_do_not_pass(name: str) -> None:
    assert check_identity(IDENTITY, IDENTITY).has_passed
    other = Identity(**IDENTITY.to_json() | {name: "e" * 64})
    assert check_identity(IDENTITY, other).outcome == "reject"
    assert check_identity(other, IDENTITY).outcome == "reject"


@pytest.mark.parametrize("name", Identity.model_fields)
def test_metrics_without_an_identity_are_refused(name: str) -> None:
    stored = IDENTITY.to_json()
    with pytest.raises(ValidationError, match=rf"{name}\n  Input should be a valid string"):
        Identity.model_validate(stored | {name: None})
    del stored[name]
    with pytest.raises(ValidationError, match=rf"{name}\n  Field required"):
        Identity.model_validate(stored)


def test_the_identity_check_names_what_differs() -> None:
    assert check_identity(IDENTITY, IDENTITY) == Check(
        name="identity",
        value="run-1",
        threshold="run run-1",
        outcome="passed",
        message="the metrics belong to this run, model, dataset and code",
    )
    metrics = Identity(**IDENTITY.to_json() | {"run_id": "run-0", "model_sha256": "b" * 64})
    assert check_identity(IDENTITY, metrics) == Check(
        name="identity",
        value="run-0",
        threshold="run run-1",
        outcome="reject",
        message=f"run_id is 'run-0', expected 'run-1'; model_sha256 is '{'b' * 64}', expected '{'a' * 64}'",
    )
