"""Child processes for tests. Each is a fork of a server process that has imported the libraries and the project."""

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

from fmnist_tasks import steps
from fmnist_tasks.errors import ConflictError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.settings import Settings
from tests.support.synthetic import RUN

PROCESS_CONTEXT = multiprocessing.get_context("forkserver")
# Do not name a module of the tests: the server cannot find it and silently preloads nothing. Each process would then
# import everything itself.
PROCESS_CONTEXT.set_forkserver_preload(
    ["fmnist_tasks.preload", "fmnist_tasks.steps", "fmnist_tasks.registry.s3", "fmnist_tasks.evaluation.report"]
)
# In bytes. The path of a socket has at most 107, and the server appends /pymp-abcdefgh/listener-abcdefgh to the folder.
_MAX_FOLDER_BYTES = 107 - 32


def start_process(output: Path, function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call a module-level function in a new process, and append what it prints to a file.

    Raises RuntimeError if the path of the temporary folder is too long for a socket.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _MAX_FOLDER_BYTES:
        raise RuntimeError(
            f"the path of {tempfile.gettempdir()} is too long for a socket in it; "
            f"set TMPDIR to a path of at most {_MAX_FOLDER_BYTES} bytes"
        )
    # A daemon does not outlive the tests, even if it hangs.
    process = PROCESS_CONTEXT.Process(
        target=_call_function, args=(dict(os.environ), output, function, arguments), daemon=True
    )
    process.start()
    return process


def wait_for_exit(process: ForkServerProcess, output: Path) -> bool:
    """Wait for a process; return True if it succeeded, False if it was killed. Any other exit fails with its output."""
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


def run_one_step(name: str) -> None:
    """Run one step of the finished run again."""
    steps.run_step(name, RUN)


def promote_releases(writer: int, promotions: int, queue: Queue[Any]) -> None:
    """Promote a number of new releases, retrying conflicts.

    Puts the outcome of each call into the queue: its sequence, or 0 for a conflict, and the version.
    """
    store, outcomes = open_store(Settings.from_environment().store), []
    for number in range(promotions):
        version, sequence = f"writer-{writer}-release-{number}", 0
        while not sequence:
            current = champion.find_champion(store)
            try:
                sequence = champion.append_entry(
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
