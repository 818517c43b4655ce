from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from fmnist_tasks.evaluation.gate import Identity, at_least, at_most, judge, same_origin
from fmnist_tasks.verdict import Check

IDENTITY = Identity("run-1", "m" * 64, "d" * 64, "c" * 64)


@pytest.mark.parametrize(("right", "passes"), [(9199, False), (9200, True), (9201, True), (10_000, True), (0, False)])
def test_both_sides_of_a_lower_bound(right: int, passes: bool) -> None:
    assert at_least("accuracy", right / 10_000, 0.92, "test accuracy").passed is passes


@pytest.mark.parametrize(("value", "passes"), [(0.0149, True), (0.015, True), (0.0151, False), (0.0, True)])
def test_both_sides_of_an_upper_bound(value: float, passes: bool) -> None:
    assert at_most("calibration", value, 0.015, "the error").passed is passes


@pytest.mark.parametrize("compare", [at_least, at_most])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.99", True, [0.99]])
def test_what_is_no_finite_number_rejects_whatever_the_policy_says(compare, value: object) -> None:
    check = compare("it", value, 0.5, "the figure", "hold")
    assert check.outcome == "reject"
    assert "missing or no number" in check.reason


@pytest.mark.parametrize(
    ("compare", "value", "passed", "reason"),
    [
        (at_least, 0.7, True, "it is 70.00%, at least the bound of 70.00%"),
        (at_least, 0.5, False, "it is 50.00%, below the bound of 70.00%"),
        (at_most, 0.7, True, "it is 70.00%, at most the bound of 70.00%"),
        (at_most, 0.9, False, "it is 90.00%, above the bound of 70.00%"),
        (at_least, None, False, "it is missing or no number (None); ≥ 70.00% is asked"),
        (at_most, None, False, "it is missing or no number (None); ≤ 70.00% is asked"),
    ],
)
def test_a_check_says_what_was_found_and_on_which_side_of_the_bound(
    compare, value: float | None, passed: bool, reason: str
) -> None:
    bound = "≥ 70.00%" if compare is at_least else "≤ 70.00%"
    assert compare("name", value, 0.7, "it") == Check("name", value, bound, passed, reason, "reject")


def test_a_figure_is_written_in_the_form_that_was_asked_for() -> None:
    check = at_most("it", 12.34, 50, "milliseconds", form=".1f")
    assert (check.bound, check.reason) == ("≤ 50.0", "milliseconds is 12.3, at most the bound of 50.0")


@pytest.mark.parametrize("compare", [at_least, at_most])
@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_a_bound_that_is_no_number_passes_nothing(compare, bound: float) -> None:
    assert not compare("it", 0.99, bound, "the figure").passed


def test_no_checks_are_a_rejection() -> None:
    verdict = judge(IDENTITY, [])
    assert verdict.decision == "reject"
    assert verdict.failures == "no check was made"


def test_one_failure_rejects_and_its_reason_names_figure_and_bound() -> None:
    good = at_least("accuracy", 0.95, 0.92, "test accuracy")
    bad = at_least("recall", 0.5, 0.7, "the recall of shirts")
    verdict = judge(IDENTITY, [good, bad])
    assert verdict.decision == "reject"
    assert verdict.failures == "the recall of shirts is 50.00%, below the bound of 70.00%"
    assert judge(IDENTITY, [good]).decision == "promote"


def test_a_failure_may_hold_but_not_beside_one_that_rejects() -> None:
    good = at_least("accuracy", 0.95, 0.92, "test accuracy")
    held, rejected = (at_least("it", 0.5, 0.7, "it", outcome) for outcome in ("hold", "reject"))
    assert judge(IDENTITY, [good, held]).decision == "hold"
    assert judge(IDENTITY, [held, rejected, good]).decision == "reject"
    assert judge(IDENTITY, [rejected, held]).decision == "reject"


def test_a_verdict_is_stored_with_its_decision_its_identity_and_every_check() -> None:
    checks = [at_least("it", found, 0.7, "it", "hold") for found in (0.8, 0.5, None)]
    stored = judge(IDENTITY, checks).as_json()
    assert stored == {"decision": "reject", **asdict(IDENTITY), "checks": [check.as_json() for check in checks]}
    assert [check["outcome"] for check in stored["checks"]] == ["passed", "hold", "reject"]


def test_the_reasons_of_all_failures_are_joined() -> None:
    checks = [at_least(name, found, 0.7, name) for name, found in (("a", 0.5), ("b", 0.8), ("c", 0.6))]
    expected = "a is 50.00%, below the bound of 70.00%; c is 60.00%, below the bound of 70.00%"
    assert judge(IDENTITY, checks).failures == expected


@pytest.mark.parametrize("name", [*asdict(IDENTITY)])
def test_figures_of_another_run_model_dataset_or_code_do_not_pass(name: str) -> None:
    figures = asdict(IDENTITY)
    assert same_origin(IDENTITY, figures).passed
    assert not same_origin(replace(IDENTITY, **{name: "this week's"}), figures).passed
    del figures[name]
    assert same_origin(IDENTITY, figures).outcome == "reject"


def test_figures_from_elsewhere_are_told_by_what_differs() -> None:
    assert same_origin(IDENTITY, asdict(IDENTITY)) == Check(
        "bound to its run", "run-1", "run run-1", True, "the figures belong to this run, model, dataset and code"
    )
    figures = {**asdict(IDENTITY), "run_id": "run-0"}
    del figures["model_sha256"]
    reason = f"run_id is 'run-0', expected 'run-1'; model_sha256 is None, expected '{'m' * 64}'"
    assert same_origin(IDENTITY, figures) == Check("bound to its run", "run-0", "run run-1", False, reason)
