"""The unit lane refuses to train, start Airflow or use the network; a missing requirement is reported once."""

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

MISSING = Requirement("Nothing", "sudo make nothing", lambda: False)


def expect_refusal(action: str) -> pytest.RaisesExc[LaneError]:
    return pytest.raises(LaneError, match=f"unit tests must not {action}.*mark this test `integration`")


@pytest.fixture(autouse=True)
def forget_attempts(unit_lane: None) -> Iterator[None]:
    """These tests make such attempts on purpose, so they must not fail when they end."""
    yield
    with suppress(LaneError):
        raise_attempts()


def test_the_unit_lane_does_not_train(tmp_path: Path) -> None:
    """By any method, in a process that has not yet imported TensorFlow, and again in one that has."""
    program = """
import pathlib, sys
import numpy, pytest
from tests.support.unit_lane import LaneError, enforce_unit_lane, raise_attempts

def train_in_each_way():
    import keras
    from fmnist_tasks.model import training
    from fmnist_tasks.model.ood.probe import fit_probe
    from tests.model.test_network import PROFILE, Checkpoints, FolderStore, make_arrays
    from tests.support import synthetic
    checkpoints = Checkpoints(FolderStore(pathlib.Path(sys.argv[1])), "run", "base-0", {})
    features = numpy.ones((8, 2), numpy.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    yield lambda: training.train_model(make_arrays(), 10, synthetic.FORMAT, PROFILE, 0, checkpoints)
    yield lambda: fit_probe(features.copy(), features[:, 0] > 0, 2)
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
    result = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", [socket.socket, _socket.socket])
def test_the_unit_lane_does_not_use_the_network(kind: type[_socket.socket]) -> None:
    address = ("127.0.0.1", 9)
    with closing(kind(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for attempt in (
            lambda: probe.connect(address),
            lambda: probe.connect_ex(address),
            lambda: probe.sendto(b"", address),
            lambda: probe.sendmsg([b""], [], 0, address),
        ):
            with expect_refusal("use the network"):
                attempt()


def test_the_unit_lane_may_use_unix_sockets(tmp_path: Path) -> None:
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
def test_the_unit_lane_does_not_start_airflow(command: list[str]) -> None:
    with expect_refusal("start Airflow"):
        subprocess.run(command)
    with expect_refusal("start Airflow"):
        subprocess.run(args=shlex.join(command), shell=True)  # noqa: S602
    with expect_refusal("start Airflow"):
        os.system(shlex.join(command))  # noqa: S605
    with expect_refusal("start Airflow"):
        subprocess.run(["named"], executable="/bin/airflow")
    with expect_refusal("start Airflow"):
        os.posix_spawn("/does/not/exist", command, {})
    with expect_refusal("start Airflow"):
        os.execv("/does/not/exist", command)  # noqa: S606


@pytest.mark.parametrize("command", [["true"], ["echo", "airflow"], ["sh", "-c", "echo airflow run; true"]])
def test_the_unit_lane_may_start_other_programs(command: list[str]) -> None:
    subprocess.run(args=command, check=True)
    subprocess.run(args=shlex.join(command), shell=True, check=True)  # noqa: S602
    raise_attempts()


def test_an_attempt_whose_error_is_caught_fails_the_test_when_it_ends() -> None:
    with suppress(LaneError):
        subprocess.run(["airflow", "version"])
    with expect_refusal("start Airflow"):
        raise_attempts()
    raise_attempts()  # once


def test_a_missing_requirement_skips_a_test_and_with_ci_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = re.escape("missing: Nothing (sudo make nothing)")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=message):
        require(MISSING)
    for value in ("true", "1", "woodpecker"):
        monkeypatch.setenv("CI", value)
        with pytest.raises(pytest.fail.Exception, match=message):
            require(MISSING)
    for value in ("", "0", "false"):
        monkeypatch.setenv("CI", value)
        with pytest.raises(pytest.skip.Exception, match=message):
            require(MISSING)


def test_the_remedy_for_a_program_built_by_go_depends_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install Go" in str(COMPOSE_PARSER)
    (tmp_path / "go").touch(0o755)
    assert "connect the machine, or set GOPROXY" in str(COMPOSE_PARSER)


def test_the_summary_lists_each_missing_requirement_once_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    reasons = [str(POSTGRES), f"{POSTGRES}; {REDIS}", "another reason"]
    lines: list[str] = []
    reporter = SimpleNamespace(
        getreports=lambda _: [SimpleNamespace(longrepr=("file", 1, f"Skipped: {reason}")) for reason in reasons],
        section=lambda _: None,
        write_line=lines.append,
    )
    skip_summary.pytest_terminal_summary(reporter, SimpleNamespace())
    assert lines == [
        "Postgres: 2 tests skipped; to fix: sudo make test-deps",
        "Redis: 1 test skipped; to fix: sudo make test-deps",
    ]
