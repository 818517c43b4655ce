from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from fmnist_tasks.evaluation.gate import Identity, at_least, at_most, judge, same_origin

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
    assert [check["outcome"] for check in judge(IDENTITY, [good, held, rejected]).as_json()["checks"]] == [
        "passed",
        "hold",
        "reject",
    ]


@pytest.mark.parametrize("name", [*asdict(IDENTITY)])
def test_figures_of_another_run_model_dataset_or_code_do_not_pass(name: str) -> None:
    figures = asdict(IDENTITY)
    assert same_origin(IDENTITY, figures).passed
    assert not same_origin(replace(IDENTITY, **{name: "this week's"}), figures).passed
    del figures[name]
    assert same_origin(IDENTITY, figures).outcome == "reject"
