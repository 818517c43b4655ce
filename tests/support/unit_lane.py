"""Makes whatever the unit lane leaves out fail: training, an Airflow process, the network."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fmnist_tasks import steps

_TRAINING_STEPS = ("train", "fine_tune")
_AIRFLOW_PROGRAMS = {"airflow", "run", "ui", "setup"}  # and our scripts that start it


class LaneError(AssertionError):
    """A unit test does what its lane excludes. CONTRIBUTING.md says which marker it needs."""


def enforce_unit_lane(patch: pytest.MonkeyPatch) -> None:
    """Let each of these raise :class:`LaneError` from now on."""
    for name in _TRAINING_STEPS:
        patch.setattr(steps, name, _refuse_training)
        patch.setitem(steps.STEPS, name, _refuse_training)
    if "tensorflow" in sys.modules:  # a test whose module imports none reaches training by the steps alone
        from fmnist_tasks.model import probe, training, tuning

        for module, name in ((training, "fit"), (tuning, "fit"), (probe, "fitted")):
            patch.setattr(module, name, _refuse_training)
    patch.setattr(socket.socket, "connect", _refuse_network(socket.socket.connect))
    patch.setattr(socket.socket, "connect_ex", _refuse_network(socket.socket.connect_ex))
    patch.setattr(subprocess.Popen, "__init__", _refuse_airflow(subprocess.Popen.__init__))


def _refuse_training(*_: Any, **__: Any) -> NoReturn:
    raise LaneError("unit tests must not train; mark this test `integration`")


def _refuse_network(connect: Any) -> Any:
    def connect_locally(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            raise LaneError(f"unit tests must not use the network ({address}); mark this test `integration`")
        return connect(self, address)

    return connect_locally


def _refuse_airflow(start: Any) -> Any:
    def start_program(self: Any, arguments: Any, *rest: Any, **options: Any) -> None:
        words = [arguments] if isinstance(arguments, str | Path) else list(arguments)
        if _AIRFLOW_PROGRAMS & {Path(str(word)).name for word in words[:1]}:
            raise LaneError(f"unit tests must not start Airflow ({words}); mark this test `integration`")
        start(self, arguments, *rest, **options)

    return start_program
