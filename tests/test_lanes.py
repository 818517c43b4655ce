"""The unit lane refuses what it leaves out; a missing requirement skips tests and is reported once, with its remedy."""

from __future__ import annotations

import _socket
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmnist_tasks.settings import PROJECT
from tests.support import skip_summary
from tests.support.requirements import COMPOSE_PARSER, POSTGRES, REDIS, Requirement, require
from tests.support.unit_lane import LaneError, raise_attempts

LACKING = Requirement("Nothing", "sudo make nothing", lambda: False)


def refused(what: str) -> pytest.RaisesExc[LaneError]:
    return pytest.raises(LaneError, match=f"unit tests must not {what}.*mark this test `integration`")


@pytest.fixture(autouse=True)
def forget_attempts(unit_lane: None) -> Iterator[None]:
    """The attempts of these tests are meant."""
    yield
    with suppress(LaneError):
        raise_attempts()


def test_the_unit_lane_does_not_train(tmp_path: Path) -> None:
    """By whatever way, in a process that has not imported TensorFlow before, and again in one that has."""
    program = """
import pathlib, sys
import numpy, pytest
from tests.support.unit_lane import LaneError, enforce_unit_lane, raise_attempts

def train_in_each_way():
    import keras
    from fmnist_tasks.model import probe, training
    from tests.model.test_network import PROFILE, Checkpoints, FolderStore, small
    checkpoints = Checkpoints(FolderStore(pathlib.Path(sys.argv[1])), "run", "base-0", {})
    features = numpy.ones((8, 2), numpy.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    yield lambda: training.train(small(), 10, PROFILE, 0, checkpoints)
    yield lambda: probe.fitted(features.copy(), features[:, 0] > 0, 2)
    yield lambda: model.train_on_batch(features, features[:, :1])
    yield lambda: model.fit(features, features[:, :1], verbose=0)

assert "tensorflow" not in sys.modules
for _ in range(2):
    with pytest.MonkeyPatch.context() as patch:
        enforce_unit_lane(patch)
        for train in train_in_each_way():
            with pytest.raises(LaneError, match="must not train"):
                train()
            with pytest.raises(LaneError, match="must not train; mark this test `integration`"):
                raise_attempts()
train()
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", [socket.socket, _socket.socket])
def test_the_unit_lane_uses_no_network(kind: type[_socket.socket]) -> None:
    nowhere = ("127.0.0.1", 9)
    with closing(kind(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for attempt in (
            lambda: probe.connect(nowhere),
            lambda: probe.connect_ex(nowhere),
            lambda: probe.sendto(b"", nowhere),
            lambda: probe.sendmsg([b""], [], 0, nowhere),
        ):
            with refused("use the network"):
                attempt()


def test_the_unit_lane_has_sockets_of_this_machine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        client.connect(str(tmp_path / "socket"))
    raise_attempts()


@pytest.mark.parametrize(
    "command",
    [
        ["airflow", "version"],
        ["/somewhere/include/run"],
        [sys.executable, "-m", "airflow", "version"],
        ["/a copy/.venv/bin/python3.13", "-m", "airflow", "version"],
        ["sh", "-c", "airflow version"],
        ["bash", "-ec", "cd / && AIRFLOW_HOME=/x exec airflow version"],
        ["bash", "-e", "/somewhere/include/setup"],
    ],
)
def test_the_unit_lane_starts_no_airflow(command: list[str]) -> None:
    with refused("start Airflow"):
        subprocess.run(command)
    with refused("start Airflow"):
        subprocess.run(args=shlex.join(command), shell=True)  # noqa: S602
    with refused("start Airflow"):
        os.system(shlex.join(command))  # noqa: S605
    with refused("start Airflow"):
        subprocess.run(["named"], executable="/bin/airflow")
    with refused("start Airflow"):
        os.posix_spawn("/does/not/exist", command, {})
    with refused("start Airflow"):
        os.execv("/does/not/exist", command)  # noqa: S606


@pytest.mark.parametrize("command", [["true"], ["echo", "airflow"], ["sh", "-c", "echo airflow run; true"]])
def test_the_unit_lane_starts_other_programs(command: list[str]) -> None:
    subprocess.run(args=command, check=True)
    subprocess.run(args=shlex.join(command), shell=True, check=True)  # noqa: S602
    raise_attempts()


def test_an_attempt_whose_error_is_swallowed_fails_the_test_when_it_ends() -> None:
    with suppress(LaneError):
        subprocess.run(["airflow", "version"])
    with refused("start Airflow"):
        raise_attempts()
    raise_attempts()  # once


def test_a_test_that_lacks_something_is_skipped_and_with_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    said = re.escape("missing: Nothing (sudo make nothing)")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=said):
        require(LACKING)
    for value in ("true", "1", "woodpecker"):
        monkeypatch.setenv("CI", value)
        with pytest.raises(pytest.fail.Exception, match=said):
            require(LACKING)
    for value in ("", "0", "false"):
        monkeypatch.setenv("CI", value)
        with pytest.raises(pytest.skip.Exception, match=said):
            require(LACKING)


def test_the_remedy_of_what_go_builds_says_what_this_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install Go" in str(COMPOSE_PARSER)
    (tmp_path / "go").touch(0o755)
    assert "connect the machine, or set GOPROXY" in str(COMPOSE_PARSER)


def test_the_end_of_a_run_says_once_for_each_thing_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    lacks = [str(POSTGRES), f"{POSTGRES}; {REDIS}", "another reason"]
    said: list[str] = []
    reporter = SimpleNamespace(
        getreports=lambda _: [SimpleNamespace(longrepr=("file", 1, f"Skipped: {reason}")) for reason in lacks],
        section=lambda _: None,
        write_line=said.append,
    )
    skip_summary.pytest_terminal_summary(reporter, SimpleNamespace())
    assert said == [
        "Postgres: 2 tests skipped; to fix: sudo make test-deps",
        "Redis: 1 test skipped; to fix: sudo make test-deps",
    ]
