"""No alert is lost: real stores and receivers, with faults and kills (SIGKILL) by a seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.alert_process import AlertProcesses
from tests.support.alert_trials import SCENARIOS, Tally, build_stage_in_folder, build_stage_on_minio, play_trials
from tests.support.minio_server import MinioServer
from tests.support.proxy import Proxy

FAULTLESS = ("receivers down", "answers of the store lost")  # nothing in them can be delivered twice


@pytest.fixture(scope="module")
def processes() -> Iterator[AlertProcesses]:
    with AlertProcesses() as new:
        yield new


def check(tally: Tally) -> None:
    """Nothing is lost, and each duplicate says that it may be one."""
    assert (tally.lost, tally.unlabelled) == (0, 0)


@pytest.mark.integration
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_alert_is_lost(tmp_path: Path, processes: AlertProcesses, scenario: str) -> None:
    for seed in range(2):
        tally = build_stage_in_folder(tmp_path / str(seed), processes).play(scenario, seed)
        check(tally)
        assert not (scenario in FAULTLESS and (tally.duplicates or tally.needless_labels)), tally


@pytest.mark.exhaustive
def test_no_alert_is_lost_in_200_trials() -> None:
    tallies = play_trials(200)
    for tally in tallies.values():
        check(tally)
    for scenario in FAULTLESS:
        assert (tallies[scenario].duplicates, tallies[scenario].needless_labels) == (0, 0)
    assert sum(tally.trials for tally in tallies.values()) == 200
    assert sum(tally.kills for tally in tallies.values()) >= 50


@pytest.mark.exhaustive
def test_killed_at_every_point(tmp_path: Path, processes: AlertProcesses) -> None:
    """Before and after each request to the store and each delivery, while an alert is raised and sent."""
    total = Tally()
    for fatal in range(1, 1000):
        tally = build_stage_in_folder(tmp_path / str(fatal), processes).play("killed at a point", 2, fatal)
        total.add(tally)
        check(tally)
        if not tally.kills:
            break
    assert total.kills >= 60
    assert total.duplicates > 0  # some kills fall between delivery and mark


@pytest.mark.exhaustive
def test_killed_at_every_point_on_minio(minio_server: MinioServer, proxy: Proxy, processes: AlertProcesses) -> None:
    total = Tally()
    for fatal in range(1, 1000):
        tally = build_stage_on_minio(minio_server, proxy, processes).play("killed at a point", 2, fatal)
        total.add(tally)
        check(tally)
        if not tally.kills:
            break
    assert total.kills >= 60
