"""Makes the usual attempts at what the unit lane leaves out fail: training, an Airflow process, the network.

An audit hook sees what this process asks of the system, whichever way it asks; TensorFlow's gradients are what every
training needs. What a program that a test starts does by itself is not seen.
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

_AIRFLOW_PROGRAMS = {"airflow", "run", "ui", "setup"}  # and our scripts that start it
_SHELLS = {"sh", "bash", "dash", "zsh"}
_COMMAND = re.compile(  # what a line for a shell starts: at its beginning, and after what begins or precedes a command
    r"""(?:^|[;&|(`\n])\s*(?:["']?(?:\w+=\S*|!|if|then|do|exec|env|nohup|time|(?:\S*/)?(?:ba|da|z)?sh"""
    r"""|[^"';&|(`\n]*python[\d.]*["']?|-\w+)\s+)*["']?([^\s;&|()`"']+)"""
)
_attempts: list[str] = []  # since the current test began
_current_patch: pytest.MonkeyPatch | None = None  # of the current test, if it is one of the unit lane


class LaneError(Exception):
    """A unit test does what its lane excludes. CONTRIBUTING.md says which marker it needs."""


def enforce_unit_lane(patch: pytest.MonkeyPatch) -> None:
    """Let each attempt raise :class:`LaneError` from now on, until `patch` is undone."""
    _attempts.clear()
    patch.setattr(sys.modules[__name__], "_current_patch", patch)
    if tensorflow := sys.modules.get("tensorflow"):
        _refuse_gradients(tensorflow)


def raise_attempts() -> None:
    """Raise :class:`LaneError` if there were attempts since the test began, even if it has swallowed their errors."""
    attempts = list(dict.fromkeys(_attempts))
    _attempts.clear()
    if attempts:
        raise LaneError("; ".join(attempts))


def _refuse(what: str) -> NoReturn:
    _attempts.append(f"unit tests must not {what}; mark this test `integration`")
    raise LaneError(_attempts[-1])


def _refuse_network(connection: socket.socket, address: Any) -> None:
    if connection.family != socket.AF_UNIX and address is not None:  # a message without one has had its `connect`
        _refuse(f"use the network ({address})")


def _refuse_airflow(program: Any, arguments: Any = (), *_: Any) -> None:
    words = [os.fsdecode(word) for word in arguments] or [os.fsdecode(program)]
    if _AIRFLOW_PROGRAMS & {Path(os.fsdecode(program)).name, *_find_programs(words)}:
        _refuse(f"start Airflow ({' '.join(words)})")


def _refuse_airflow_in_shell(line: str | bytes) -> None:
    _refuse_airflow("sh", ["sh", "-c", line])


def _find_programs(words: Sequence[str]) -> Iterable[str]:
    """Names of the programs and of Python's modules that a command starts, itself or by a shell."""
    yield Path(words[0]).name
    if Path(words[0]).name in _SHELLS:
        for word in words[1:]:
            yield from (Path(found).name for found in _COMMAND.findall(word))
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
    """Let every training fail, Keras's own included: it takes its gradients from this one method."""

    @functools.wraps(tensorflow.GradientTape.gradient)  # TensorFlow does not rewrite what looks like its own
    def refuse_training(*_: Any, **__: Any) -> NoReturn:
        _refuse("train")

    if _current_patch is not None:
        _current_patch.setattr(tensorflow.GradientTape, "gradient", refuse_training)


class _TensorFlowFinder(MetaPathFinder):
    """Lets gradients be refused as soon as a test has imported TensorFlow, which is not imported for that."""

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


sys.addaudithook(_check_event)  # for good, as all audit hooks; without a current patch it does nothing
sys.meta_path.insert(0, _TensorFlowFinder())
