from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fault_cluster import Drill, running
from tests.support.requirements import FAKETIME, HOST_PROGRAMS, HOSTS, MINIO, POSTGRES, REDIS, require

IMAGES = (400, 200)  # made ones to train and to test on
SHOWN: list[tuple[str, str, float, object]] = []  # of each drill: name, outcome, seconds, what it showed


@pytest.fixture(scope="package")
def cluster() -> Iterator[Drill]:
    """Stores and Airflow without a worker."""
    require(HOSTS, HOST_PROGRAMS, FAKETIME, POSTGRES, REDIS, MINIO)  # now: inside there is no way to packages
    with running(*IMAGES) as made:
        yield made
        if made.spare:
            made.spare.unplug()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what each drill showed, for the table at the end."""
    if report.when == "call" and "/drills/" in report.nodeid:
        shown = dict(report.user_properties).get("shown", "")
        SHOWN.append((report.nodeid.rpartition("::")[2], report.outcome, report.duration, shown))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if SHOWN:
        terminalreporter.section("drills")
        for name, outcome, seconds, shown in SHOWN:
            terminalreporter.write_line(f"{outcome:<7} {seconds:4.0f} s  {name}: {shown}")


@pytest.fixture
def drill(cluster: Drill) -> Iterator[Drill]:
    """The cluster with an empty store and no worker but a spare one."""
    cluster.clear()
    yield cluster
    cluster.rest()
