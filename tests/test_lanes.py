"""The unit lane refuses what it leaves out; a missing requirement skips tests and is reported once, with its remedy."""

from __future__ import annotations

import re
import socket
import subprocess
from types import SimpleNamespace

import pytest

from fmnist_tasks import steps
from tests.support import skip_summary
from tests.support.requirements import POSTGRES, REDIS, Requirement, require
from tests.support.synthetic import RUN
from tests.support.unit_lane import LaneError

LACKING = Requirement("Nothing", "sudo make nothing", lambda: False)


def test_the_unit_lane_does_not_train() -> None:
    for train in (steps.train, steps.fine_tune):
        with pytest.raises(LaneError, match="must not train; mark this test `integration`"):
            train(RUN)
    with pytest.raises(LaneError, match="must not train"):
        steps.STEPS["train"](RUN)


def test_the_unit_lane_uses_no_network() -> None:
    with socket.socket() as probe:
        for connect in (probe.connect, probe.connect_ex):
            with pytest.raises(LaneError, match="must not use the network"):
                connect(("127.0.0.1", 9))


@pytest.mark.parametrize("command", [["airflow", "version"], ["/somewhere/include/run"]])
def test_the_unit_lane_starts_no_airflow(command: list[str]) -> None:
    with pytest.raises(LaneError, match="must not start Airflow"):
        subprocess.run(command)


def test_a_test_that_lacks_something_is_skipped_and_with_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    said = re.escape("missing: Nothing (sudo make nothing)")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=said):
        require(LACKING)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=said):
        require(LACKING)


def test_the_end_of_a_run_says_once_for_each_thing_how_to_get_it() -> None:
    lacks = [str(POSTGRES), f"{POSTGRES}; {REDIS}", "another reason"]
    said: list[str] = []
    reporter = SimpleNamespace(
        getreports=lambda _: [SimpleNamespace(longrepr=("file", 1, f"Skipped: {reason}")) for reason in lacks],
        section=lambda _: None,
        write_line=said.append,
    )
    skip_summary.pytest_terminal_summary(reporter)
    assert said == [
        "Postgres: 2 tests skipped; to fix: sudo make test-deps",
        "Redis: 1 test skipped; to fix: sudo make test-deps",
    ]
