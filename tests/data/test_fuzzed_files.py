"""Whatever its bytes and name, a file joins the dataset, goes to quarantine, or waits, and the run continues."""

from __future__ import annotations

import pytest

from tests.support.fuzzed_files import make_cases, run_cases
from tests.support.pipeline import Pipeline


@pytest.mark.parametrize(("count", "seed"), [(48, 1), pytest.param(2000, 0, marks=pytest.mark.exhaustive)])
def test_every_fuzzed_file_ends_up_in_the_right_place(pipeline: Pipeline, count: int, seed: int) -> None:
    outcomes = list(run_cases(pipeline, list(make_cases(count, seed))))
    assert len(outcomes) == count
    assert [outcome for outcome in outcomes if outcome.is_wrong] == []
    assert {outcome.destination for outcome in outcomes} == {"accepted", "quarantined", "waiting"}
