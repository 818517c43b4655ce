"""Processes that send alerts and may be killed (SIGKILL) at any point: forks of one that has imported everything.

`python -m tests.support.alert_process` reads one call a line from standard input, makes it in a fork, and answers with
how that ended: 0, or -9 if it was killed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

from fmnist_tasks.alerts import channels, flush, outbox, task_failed
from fmnist_tasks.alerts.watch import watch
from fmnist_tasks.errors import RejectedError, StoreError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store, read_clock
from fmnist_tasks.settings import DAG_ID
from tests.support.listeners import WebhookServer

R = TypeVar("R")

_REQUESTS = ("open", "put", "put_if_absent", "list", "stat", "delete")


@dataclass(frozen=True)
class Call:
    """What a process does: report failed steps as their tasks would, flush as a later step does, or watch."""

    action: str  # fail, flush or watch
    seconds: float  # the store's clock is ahead by so many
    steps: tuple[tuple[str, str], ...] = ()  # of `fail`: names of steps of run `run-1`, and their reasons
    fatal: int = 0  # the point at which the process is killed: odd ones before a request or delivery, even ones after
    seed: int = 0
    lost_answers: float = 0  # the share of creates in a folder that succeed although the writer is told otherwise
    failing_writes: float = 0  # the share of writes to a folder that succeed, and raise an error all the same


class AlertProcesses:
    """The process that forks, for as long as this is entered."""

    def __enter__(self) -> AlertProcesses:
        command = [sys.executable, "-m", "tests.support.alert_process"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def make(self, call: Call, environment: dict[str, str]) -> bool:
        """Make the call in a process of its own; False if it was killed. Raises if it failed otherwise."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": asdict(call), "environment": environment}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        if status not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"{call} ended with {status}")
        return status == 0


def serve() -> None:
    """Answer calls until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a call prints is no answer
    # Once, for all forks: libraries and plugins are imported, and the classes of Airflow's database are mapped.
    import airflow.providers.smtp.hooks.smtp  # noqa: F401

    os.environ["AIRFLOW_CONN_FMNIST_APPRISE"] = WebhookServer().connection
    channels.find_channels()
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            os._exit(_run(Call(**request["call"]), request["environment"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(call: Call, environment: dict[str, str]) -> int:
    os.environ.update(environment)
    random.seed(call.seed)
    try:
        _make(call)
    except BaseException:  # noqa: BLE001 - nothing may return into the loop of the process that forks
        traceback.print_exc()
        return 1
    return 0


def _make(call: Call) -> None:
    points = itertools.count(1)

    def make_mortal(function: Callable[..., R]) -> Callable[..., R]:
        def call_or_die(*args: Any, **kwargs: Any) -> R:
            for moment in ("before", "after"):
                if moment == "after":
                    result = function(*args, **kwargs)
                if next(points) == call.fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call_or_die

    def read_later_time(store: Store) -> datetime:
        return read_clock(store) + timedelta(seconds=call.seconds)

    with (
        patch.object(outbox, "read_clock", read_later_time),
        patch.object(outbox, "deliver", make_mortal(channels.deliver)),
    ):
        create = _lose(FolderStore.put_if_absent, call.lost_answers)
        patch.object(FolderStore, "put_if_absent", _fail(create, call.failing_writes)).start()
        patch.object(FolderStore, "put", _fail(FolderStore.put, call.failing_writes)).start()
        for kind in (FolderStore, S3Store):
            for name in _REQUESTS:
                patch.object(kind, name, make_mortal(getattr(kind, name))).start()
        if call.action == "fail":
            for index, (step, reason) in enumerate(call.steps):
                task_failed(_make_context(step, reason, index))
        elif call.action == "flush":
            flush()
        else:
            with suppress(StoreError):  # the task would fail
                watch()


def _lose(create: Callable[..., bool], share: float) -> Callable[..., bool]:
    """A create whose answer is lost now and then: the second try, of NFS itself, finds that the name is taken."""

    def create_and_forget(*args: Any) -> bool:
        return create(*args) and random.random() >= share  # noqa: S311 - a seeded trial

    return create_and_forget


def _fail(write: Callable[..., R], share: float) -> Callable[..., R]:
    def write_and_fail(*args: Any) -> R:
        result = write(*args)
        if random.random() < share:  # noqa: S311 - a seeded trial
            raise StoreError("the store says that the write failed")
        return result

    return write_and_fail


def _make_context(step: str, reason: str, number: int) -> dict[str, Any]:
    task = SimpleNamespace(task_id=step, map_index=-1, try_number=number + 1)
    dag = SimpleNamespace(dag_id=DAG_ID)
    return {"run_id": "run-1", "task_instance": task, "dag": dag, "exception": RejectedError(reason)}


if __name__ == "__main__":
    serve()
