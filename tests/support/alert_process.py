"""Processes that send alerts and may be killed (SIGKILL) at any point.

`python -m tests.support.alert_process` imports everything once. It reads one call per line from standard input, runs it
in a fork, and writes the exit code of the fork: 0, or -9 if it was killed.
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

from fmnist_tasks.alerts import alert_task_failure, channels, deliver_due_alerts, outbox
from fmnist_tasks.alerts.watch import check_pipeline
from fmnist_tasks.errors import RejectedError, StoreError
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store, read_clock
from fmnist_tasks.settings import DAG_ID
from tests.support.listeners import WebhookServer

R = TypeVar("R")

_REQUESTS = ("open", "put", "put_if_absent", "list", "stat", "delete")


@dataclass(frozen=True)
class Call:
    """The action of one process: report failed steps like their tasks, flush like a later step, or watch."""

    action: str  # fail, flush or watch
    seconds: float  # by which the store's clock is advanced
    steps: tuple[tuple[str, str], ...] = ()  # of `fail`: names of steps of run `run-1`, and their reasons
    kill_point: int = 0  # where the process is killed: odd ones before a request or delivery, even ones after
    seed: int = 0
    lost_responses: float = 0  # share of creates in a folder that succeed, but report that the key is taken
    failing_writes: float = 0  # share of writes to a folder that succeed, but raise an error


class AlertProcesses:
    """A context manager that runs the forking process."""

    def __enter__(self) -> AlertProcesses:
        command = [sys.executable, "-m", "tests.support.alert_process"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, call: Call, environment: dict[str, str]) -> bool:
        """Run the call in a new process; return False if it was killed. Raises RuntimeError if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": asdict(call), "environment": environment}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        if status not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"{call} failed with exit code {status}")
        return status == 0


def serve() -> None:
    """Run calls until the input ends."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of calls goes to standard error
    # Before the first fork: import libraries and plugins, and map the classes of Airflow's database.
    import airflow.providers.smtp.hooks.smtp  # noqa: F401

    os.environ["AIRFLOW_CONN_FMNIST_APPRISE"] = WebhookServer().connection
    channels.find_channels()
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            os._exit(_run_and_report(Call(**request["call"]), request["environment"]))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=responses, flush=True)


def _run_and_report(call: Call, environment: dict[str, str]) -> int:
    """Run the call and return the exit code."""
    os.environ.update(environment)
    random.seed(call.seed)
    try:
        _run(call)
    except BaseException:  # noqa: BLE001 - an exception must not reach the loop of the parent process
        traceback.print_exc()
        return 1
    return 0


def _run(call: Call) -> None:
    points = itertools.count(1)

    def add_kill_points(function: Callable[..., R]) -> Callable[..., R]:
        def call_with_kill_points(*args: Any, **kwargs: Any) -> R:
            kill_if_due()
            result = function(*args, **kwargs)
            kill_if_due()
            return result

        return call_with_kill_points

    def kill_if_due() -> None:
        if next(points) == call.kill_point:
            os.kill(os.getpid(), signal.SIGKILL)

    def read_advanced_clock(store: Store) -> datetime:
        return read_clock(store) + timedelta(seconds=call.seconds)

    with (
        patch.object(outbox, "read_clock", read_advanced_clock),
        patch.object(outbox, "deliver", add_kill_points(channels.deliver)),
    ):
        create = _lose_responses(FolderStore.put_if_absent, call.lost_responses)
        patch.object(FolderStore, "put_if_absent", _fail_after_writing(create, call.failing_writes)).start()
        patch.object(FolderStore, "put", _fail_after_writing(FolderStore.put, call.failing_writes)).start()
        for kind in (FolderStore, S3Store):
            for name in _REQUESTS:
                patch.object(kind, name, add_kill_points(getattr(kind, name))).start()
        if call.action == "fail":
            for index, (step, reason) in enumerate(call.steps):
                alert_task_failure(_make_context(step, reason, index))
        elif call.action == "flush":
            deliver_due_alerts()
        else:
            with suppress(StoreError):  # the task would fail
                check_pipeline()


def _lose_responses(create: Callable[..., bool], share: float) -> Callable[..., bool]:
    """Lose a share of the responses: NFS then repeats the request, which reports that the name is taken."""

    def create_and_lose_response(*args: Any) -> bool:
        return create(*args) and random.random() >= share  # noqa: S311 - seeded

    return create_and_lose_response


def _fail_after_writing(write: Callable[..., R], share: float) -> Callable[..., R]:
    """Raise an error after a share of the writes."""

    def write_and_fail(*args: Any) -> R:
        result = write(*args)
        if random.random() < share:  # noqa: S311 - seeded
            raise StoreError("the store reports that the write failed")
        return result

    return write_and_fail


def _make_context(step: str, reason: str, number: int) -> dict[str, Any]:
    task = SimpleNamespace(task_id=step, map_index=-1, try_number=number + 1)
    dag = SimpleNamespace(dag_id=DAG_ID)
    return {"run_id": "run-1", "task_instance": task, "dag": dag, "exception": RejectedError(reason)}


if __name__ == "__main__":
    serve()
