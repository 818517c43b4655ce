"""Refuse training, Airflow processes and network access in unit tests.

An audit hook sees the system calls of this process, whatever library makes them. Every training needs TensorFlow's
gradients, which are refused too. Programs that a test starts are not checked.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

_AIRFLOW_PROGRAMS = {"airflow", "run", "ui", "setup"}  # Airflow, and scripts in include/ that start it
_SHELLS = {"sh", "bash", "dash", "zsh"}
_COMMAND = (
    re.compile(  # programs in a shell command: at its start, or after an operator, assignment, keyword or wrapper
        r"""(?:^|[;&|(`\n])\s*(?:["']?(?:\w+=\S*|!|if|then|do|exec|env|nohup|time|(?:\S*/)?(?:ba|da|z)?sh"""
        r"""|[^"';&|(`\n]*python[\d.]*["']?|-\w+)\s+)*["']?([^\s;&|()`"']+)"""
    )
)
_attempts: list[str] = []  # since the current test started
_current_patch: pytest.MonkeyPatch | None = None  # of the current test, if it is a unit test


class LaneError(Exception):
    """A unit test attempted something that its lane excludes. CONTRIBUTING.md describes the markers."""


def enforce_unit_lane(patch: pytest.MonkeyPatch) -> None:
    """Make each attempt raise :class:`LaneError` until `patch` is undone."""
    _attempts.clear()
    patch.setattr(sys.modules[__name__], "_current_patch", patch)
    if tensorflow := sys.modules.get("tensorflow"):
        _refuse_gradients(tensorflow)


def raise_attempts() -> None:
    """Raise :class:`LaneError` if there were attempts since the test started, even if it caught their errors."""
    attempts = list(dict.fromkeys(_attempts))
    _attempts.clear()
    if attempts:
        raise LaneError("; ".join(attempts))


def _refuse(action: str) -> NoReturn:
    _attempts.append(f"unit tests must not {action}; mark this test `integration`")
    raise LaneError(_attempts[-1])


def _refuse_network(connection: socket.socket, address: Any) -> None:
    # A message without an address uses an earlier `connect`, which has been checked.
    if connection.family != socket.AF_UNIX and address is not None:
        _refuse(f"use the network ({address})")


def _refuse_airflow(program: Any, arguments: Any = (), *_: Any) -> None:
    words = [os.fsdecode(word) for word in arguments] or [os.fsdecode(program)]
    if _AIRFLOW_PROGRAMS & {Path(os.fsdecode(program)).name, *_find_programs(words)}:
        _refuse(f"start Airflow ({' '.join(words)})")


def _refuse_airflow_in_shell(line: str | bytes) -> None:
    _refuse_airflow("sh", ["sh", "-c", line])


def _find_programs(words: Sequence[str]) -> Iterable[str]:
    """The names of programs and Python modules that a command starts, directly or through a shell."""
    yield Path(words[0]).name
    if Path(words[0]).name in _SHELLS:
        for word in words[1:]:
            yield from (Path(program).name for program in _COMMAND.findall(word))
    elif "-m" in words[1:-1]:
        yield words[words.index("-m", 1) + 1]


_CHECKS: dict[str, Callable[..., None]] = {  # by audit event, docs.python.org/3/library/audit_events.html
    "socket.connect": _refuse_network,
    "socket.sendto": _refuse_network,
    "socket.sendmsg": _refuse_network,
    "subprocess.Popen": _refuse_airflow,
    "os.posix_spawn": _refuse_airflow,
    "os.exec": _refuse_airflow,
    "os.system": _refuse_airflow_in_shell,
}


def _check_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _current_patch is not None and event in _CHECKS:
        _CHECKS[event](*arguments)


def _refuse_gradients(tensorflow: ModuleType) -> None:
    """Make every training fail, those of Keras included: all take their gradients from this method."""

    @functools.wraps(tensorflow.GradientTape.gradient)  # AutoGraph does not convert functions of TensorFlow
    def refuse_training(*_: Any, **__: Any) -> NoReturn:
        _refuse("train")

    if _current_patch is not None:
        _current_patch.setattr(tensorflow.GradientTape, "gradient", refuse_training)


class _TensorFlowFinder(MetaPathFinder):
    """Refuses gradients as soon as a test imports TensorFlow, without importing it itself."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow" or _current_patch is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_refuse(module: ModuleType) -> None:
                execute(module)
                _refuse_gradients(module)

            vars(spec.loader)["exec_module"] = execute_and_refuse
        return spec


sys.addaudithook(_check_event)  # audit hooks cannot be removed; outside unit tests this one does nothing
sys.meta_path.insert(0, _TensorFlowFinder())
