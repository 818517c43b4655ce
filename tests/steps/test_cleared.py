"""Clearing steps of a run after a later promotion does not change the champion."""

from __future__ import annotations

import pytest

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.steps import STEPS, run_step
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

IN_INTEGRATION = {"ingest", "promote"}  # the other steps are in the exhaustive lane


@pytest.mark.parametrize(
    "first", [name if name in IN_INTEGRATION else pytest.param(name, marks=pytest.mark.exhaustive) for name in STEPS]
)
def test_clearing_a_step_and_all_after_it_keeps_the_later_champion(
    finished_pipeline: Pipeline, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like "Clear" with "Downstream"; steps that train or predict return their recorded results."""
    store, version = finished_pipeline.store, require_champion(finished_pipeline.store).version
    replay_steps(monkeypatch, store)
    later_version = finished_pipeline.promote_second_release()
    before = champion.list_entries(store)
    names = list(STEPS)
    for name in names[names.index(first) :]:
        run_step(name, RUN)
    assert champion.list_entries(store) == before
    assert finished_pipeline.read_result("promote").is_current is False
    summary = (
        f"{version} was promoted before (log entry 1); the champion is now {later_version}, by promote (log entry 2)"
    )
    assert summary in read_record(store, RUN.id, "promote").outcome
    assert releases.list_versions(store) == [version, later_version]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STEPS)
def test_clearing_a_single_step_keeps_the_later_champion(
    finished_pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_steps(monkeypatch, finished_pipeline.store)
    finished_pipeline.promote_second_release()
    before = champion.list_entries(finished_pipeline.store)
    run_step(name, RUN)
    assert champion.list_entries(finished_pipeline.store) == before
