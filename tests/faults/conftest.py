from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster.cluster import require_stores
from tests.support.fault_cluster import Drill, running
from tests.support.hosts import can_make_hosts
from tests.support.installing import installing

IMAGES = (400, 200)  # made ones to train and to test on
SHOWN: list[tuple[str, str, float, object]] = []  # of each drill: name, outcome, seconds, what it showed


@pytest.fixture(scope="package")
def cluster() -> Iterator[Drill]:
    """Stores and Airflow without a worker."""
    if not can_make_hosts():
        if os.environ.get("CI") == "true":
            raise RuntimeError("hosts of their own need root and the right to make namespaces")
        pytest.skip("hosts of their own need root and the right to make namespaces")
    with installing():  # now: inside there is no way to packages
        require_stores()
        if not shutil.which("faketime"):
            subprocess.run(["apt-get", "-qq", "install", "--yes", "faketime"], check=True, stdout=subprocess.DEVNULL)
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
