"""No alert is lost, with real stores and receivers, and seeded faults and kills (SIGKILL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.alert_process import AlertProcesses
from tests.support.alert_trials import SCENARIOS, Tally, build_stage_in_folder, build_stage_on_minio, run_trials
from tests.support.minio_server import MinioServer
from tests.support.proxy import Proxy

SCENARIOS_WITHOUT_DUPLICATES = ("receivers down", "responses of the store lost")


@pytest.fixture(scope="module")
def processes() -> Iterator[AlertProcesses]:
    with AlertProcesses() as processes:
        yield processes


def check_tally(tally: Tally) -> None:
    """Check that no alert is lost, and that each duplicate is labelled."""
    assert (tally.lost, tally.unlabelled) == (0, 0)


@pytest.mark.integration
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_alert_is_lost(tmp_path: Path, processes: AlertProcesses, scenario: str) -> None:
    for seed in range(2):
        tally = build_stage_in_folder(tmp_path / str(seed), processes).run_trial(scenario, seed)
        check_tally(tally)
        assert not (scenario in SCENARIOS_WITHOUT_DUPLICATES and (tally.duplicates or tally.needless_labels)), tally


@pytest.mark.exhaustive
def test_no_alert_is_lost_in_200_trials() -> None:
    tallies = run_trials(200)
    for tally in tallies.values():
        check_tally(tally)
    for scenario in SCENARIOS_WITHOUT_DUPLICATES:
        assert (tallies[scenario].duplicates, tallies[scenario].needless_labels) == (0, 0)
    assert sum(tally.trials for tally in tallies.values()) == 200
    assert sum(tally.kills for tally in tallies.values()) >= 50


@pytest.mark.exhaustive
def test_no_alert_is_lost_if_killed_at_any_point(tmp_path: Path, processes: AlertProcesses) -> None:
    """A point is before or after a request to the store or a delivery, while an alert is sent."""
    total = Tally()
    for kill_point in range(1, 1000):
        tally = build_stage_in_folder(tmp_path / str(kill_point), processes).run_trial(
            "killed at a point", 2, kill_point
        )
        total.add(tally)
        check_tally(tally)
        if not tally.kills:
            break
    assert total.kills >= 60
    assert total.duplicates > 0  # some kills fall between delivery and mark


@pytest.mark.exhaustive
def test_no_alert_is_lost_if_killed_at_any_point_on_minio(
    minio_server: MinioServer, proxy: Proxy, processes: AlertProcesses
) -> None:
    total = Tally()
    for kill_point in range(1, 1000):
        tally = build_stage_on_minio(minio_server, proxy, processes).run_trial("killed at a point", 2, kill_point)
        total.add(tally)
        check_tally(tally)
        if not tally.kills:
            break
    assert total.kills >= 60
