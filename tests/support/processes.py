"""Processes of their own for the tests: each forks from one that has imported the libraries and the project."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps import run_again
from tests.support.synthetic import RUN

PROCESS_CONTEXT = multiprocessing.get_context("forkserver")
# No module of the tests: the server does not find them, says nothing, and each process would import everything itself.
PROCESS_CONTEXT.set_forkserver_preload(
    ["fmnist_tasks.preload", "fmnist_tasks.steps", "fmnist_tasks.registry.s3", "fmnist_tasks.evaluation.report"]
)
# Bytes. A socket's path has at most 107; the server's is /pymp-abcdefgh/listener-abcdefgh below the temporary folder.
_LONGEST_FOLDER = 107 - 32


def start_process(output: Path, function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call a function of a module in a process of its own; what it prints, and its errors, are added to a file."""
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        raise RuntimeError(
            f"the path of {tempfile.gettempdir()} is too long for a socket in it: "
            f"set TMPDIR to one of at most {_LONGEST_FOLDER} bytes"
        )
    # A daemon, so that one that hangs does not outlive the tests.
    process = PROCESS_CONTEXT.Process(
        target=_call_function, args=(dict(os.environ), output, function, arguments), daemon=True
    )
    process.start()
    return process


def wait_for_exit(process: ForkServerProcess, output: Path) -> bool:
    """How it ended, once it has: well, or killed. Anything else is an error, with its output."""
    process.join(900)
    assert process.exitcode in {0, -signal.SIGKILL}, output.read_text()
    return process.exitcode == 0


def _call_function(
    environment: dict[str, str], output: Path, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    function(*arguments)


def run_step(name: str) -> None:
    """Run one step of the run again."""
    run_again(name, RUN)


def promote_releases(writer: int, promotions: int, queue: Queue[Any]) -> None:
    """Promote different releases; report what each call said: its sequence, or 0 for a conflict."""
    store, outcomes = open_store(Settings.from_environment().store), []
    for number in range(promotions):
        version, sequence = f"writer-{writer}-release-{number}", 0
        while not sequence:
            current = champion.champion(store)
            try:
                sequence = champion.append(
                    store,
                    version=version,
                    action="promote",
                    reason="why",
                    write_id=version,
                    after=current.sequence if current else 0,
                ).sequence
            except ConflictError:
                sequence = 0
            outcomes.append((sequence, version))
    queue.put(outcomes)
