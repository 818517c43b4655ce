from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from fmnist_tasks.evaluation.gate import Identity, at_least, judge, same_origin

IDENTITY = Identity("run-1", "m" * 64, "d" * 64)


@pytest.mark.parametrize(("right", "passes"), [(9199, False), (9200, True), (9201, True), (10_000, True), (0, False)])
def test_both_sides_of_the_bound(right: int, passes: bool) -> None:
    assert at_least("accuracy", right / 10_000, 0.92, "test accuracy").passed is passes


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.99", True, [0.99]])
def test_what_is_no_finite_number_does_not_pass(value: object) -> None:
    check = at_least("accuracy", value, 0.92, "test accuracy")
    assert not check.passed
    assert "missing or no number" in check.reason


def test_a_bound_that_is_no_number_passes_nothing() -> None:
    assert not at_least("accuracy", 0.99, math.nan, "test accuracy").passed


def test_no_checks_are_a_rejection() -> None:
    verdict = judge(IDENTITY, [])
    assert verdict.decision == "reject"
    assert verdict.failures == "no check was made"


def test_one_failure_rejects_and_its_reason_names_figure_and_bound() -> None:
    good = at_least("accuracy", 0.95, 0.92, "test accuracy")
    bad = at_least("novelty", 0.5, 0.95, "the share of noise called no clothing")
    verdict = judge(IDENTITY, [good, bad])
    assert verdict.decision == "reject"
    assert verdict.failures == "the share of noise called no clothing is 50.00%, below the bound of 95.00%"
    assert judge(IDENTITY, [good]).decision == "promote"


@pytest.mark.parametrize("name", ["run_id", "model_sha256", "data_fingerprint"])
def test_figures_of_another_run_model_or_dataset_do_not_pass(name: str) -> None:
    figures = asdict(IDENTITY)
    assert same_origin(IDENTITY, figures).passed
    assert not same_origin(IDENTITY, figures | {name: "last week's"}).passed
    del figures[name]
    assert not same_origin(IDENTITY, figures).passed
