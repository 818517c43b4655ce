"""Steps of an earlier run that are cleared after a later promotion: the later champion stays."""

from __future__ import annotations

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.steps import STEPS, run_again
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

SAMPLE = {"ingest", "promote"}


@pytest.mark.parametrize(
    "first", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.exhaustive) for name in STEPS]
)
def test_a_step_cleared_with_all_that_follow_leaves_the_later_champion(
    finished_pipeline: Pipeline, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As "Clear" with "Downstream" does; the steps that train or predict end with their recorded results."""
    store, own = finished_pipeline.store, service.in_service(finished_pipeline.store).version
    replay_steps(monkeypatch, store)
    later = finished_pipeline.promote_second_release()
    before = champion.history(store)
    names = list(STEPS)
    for name in names[names.index(first) :]:
        run_again(name, RUN)
    assert champion.history(store) == before
    promoted = read_record(store, RUN.id, "promote")
    assert promoted["result"]["current"] is False
    told = f"{own} was promoted before, as number 1; since then the champion is {later} by promote, number 2"
    assert told in promoted["outcome"]
    assert releases.versions(store) == [own, later]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STEPS)
def test_a_step_cleared_alone_leaves_the_later_champion(
    finished_pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_steps(monkeypatch, finished_pipeline.store)
    finished_pipeline.promote_second_release()
    before = champion.history(finished_pipeline.store)
    run_again(name, RUN)
    assert champion.history(finished_pipeline.store) == before
