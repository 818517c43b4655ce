"""Whatever its bytes and name, a file becomes part of the dataset, goes to quarantine, or waits; the run goes on."""

from __future__ import annotations

import pytest

from tests.support.fuzzed_files import make_cases, run_cases
from tests.support.pipeline import Pipeline


@pytest.mark.parametrize(("count", "seed"), [(48, 1), pytest.param(2000, 0, marks=pytest.mark.exhaustive)])
def test_every_fuzzed_file_ends_where_it_has_to(pipeline: Pipeline, count: int, seed: int) -> None:
    outcomes = list(run_cases(pipeline, list(make_cases(count, seed))))
    assert len(outcomes) == count
    assert [outcome for outcome in outcomes if outcome.is_wrong] == []
    assert {outcome.place for outcome in outcomes} == {"accepted", "quarantined", "waiting"}
