"""What Airflow calls when a task or a run has failed, and the same found in the records of the steps.

A failure of a step is known by its record: the callback of the task and a later look at the records find the same
alert.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.sending import send
from fmnist_tasks.errors import FmnistError, RejectedError
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID, WATCH_ID, read_store_uri

log = logging.getLogger(__name__)

Record = dict[str, Any]


def task_failed(context: Mapping[str, Any]) -> None:
    """Failure callback of every Airflow task; runs in the task's process, after its last try."""
    send(_describe_failure(context))


def approval_requested(context: Mapping[str, Any]) -> None:
    """Notifier of a task that waits for an approval, each time that it asks."""
    task, asked = context["task_instance"], context["task"]
    send(
        Alert(
            "approval needed",
            context["run_id"],
            " ".join([asked.subject, *asked.body.splitlines()[:1]]),
            context["dag"].dag_id,
            headline=asked.subject,
            identity=_name_try(task),
            task_id=task.task_id,
        )
    )


def run_timed_out(context: Mapping[str, Any]) -> None:
    """Failure callback of the whole run; reports only what no task can, the run's own time limit."""
    if context.get("reason") == "timed_out":
        text = "The run exceeded its time limit and was stopped"
        began = getattr(context.get("dag_run"), "start_date", None)  # another one after the run was cleared
        send(Alert("run failed", context["run_id"], text, context["dag"].dag_id, identity=f"time limit {began}"))


def describe_record(record: Record, dag_id: str = DAG_ID, task_id: str = "") -> Alert:
    """The alert about a step that was rejected, has failed or has not ended."""
    rejected, outcome = record["status"] == "rejected", record["outcome"]
    if record["status"] == "running":
        outcome = f"it began at {record['started'][:16]} UTC and has not ended; its process was probably killed"
    return Alert(
        "rejected" if rejected else "run failed",
        record["run_id"],
        f"Task {task_id or record['step']}: {outcome}",
        dag_id,
        headline=_find_headline(record) if rejected else "",
        # What is only known to be running may still fail, which is another alert.
        identity=f"{record['step']} {record['started']}{' running' if record['status'] == 'running' else ''}",
    )


def _describe_failure(context: Mapping[str, Any]) -> Alert:
    error, task = context.get("exception"), context["task_instance"]
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    if response := _describe_response(context):
        return response
    try:
        if dag_id == DAG_ID and (record := _find_record(run_id, task, str(error))):
            return describe_record(record, dag_id, task.task_id)
    except FmnistError as second:
        log.warning("the record of the failed step cannot be read: %s", second)
    text = f"Task {task.task_id}: {error or 'stopped without an exception'}"
    event = "rejected" if isinstance(error, RejectedError) and dag_id == DAG_ID else "run failed"
    if dag_id == WATCH_ID:  # it runs every hour: the same cause is reported once a day
        return Alert(event, None, text, dag_id, identity=f"{datetime.now(UTC):%Y-%m-%d} {text}")
    return Alert(event, run_id, text, dag_id, identity=f"{_name_try(task)} {text}")


def _describe_response(context: Mapping[str, Any]) -> Alert | None:
    """The alert about a user's rejection, or an approval that nobody answered; None for any other failure."""
    from airflow.providers.standard.exceptions import HITLRejectException, HITLTimeoutError

    error, task = context.get("exception"), context["task_instance"]
    where = {"run_id": context["run_id"], "dag_id": context["dag"].dag_id, "identity": _name_try(task)}
    if isinstance(error, HITLTimeoutError):
        text = f"Task {task.task_id}: nobody answered within {APPROVAL_LIMIT.days} days, which counts as a rejection"
        return Alert("approval expired", text=text, headline=f"no answer within {APPROVAL_LIMIT.days} days", **where)
    if not isinstance(error, HITLRejectException):
        return None
    return Alert("rejected by a user", text=f"Task {task.task_id}: {error}", headline=str(error), **where)


def _name_try(task: Any) -> str:
    """One try of one task; a task that was cleared and fails again has another number."""
    return f"{task.task_id} {getattr(task, 'map_index', -1)} {getattr(task, 'try_number', 0)}"


def _find_record(run_id: str, task: Any, outcome: str) -> Record | None:
    """The record that the failed task has left, if it came that far."""
    step, index = task.task_id.rpartition(".")[2], getattr(task, "map_index", -1)
    store = open_store(read_store_uri())
    for name, record in read_records(store, run_id).items():
        mapped = index is not None and index >= 0 and name == f"{step}-{record['parameters']['seed'] + index}"
        if (name == step or mapped) and record["status"] != "done" and record["outcome"] == outcome:
            return record
    return None


def _find_headline(record: Record) -> str:
    """The first check that rejects, with its value against its threshold, and how many others do."""
    failed = list(_find_failed_checks(record))
    if not failed:
        return ""
    first = re.sub(r" \([^()]* interval [^()]*\)", "", str(failed[0].get("reason") or failed[0]["name"]))
    first = re.sub(r"\bis (\d)", r"\1", first).replace("the bound of", "the threshold")
    return f"{first}{f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''}"


def _find_failed_checks(record: Record) -> Iterator[Mapping[str, Any]]:
    checks = record.get("result", {}).get("checks", [])
    rows = checks if isinstance(checks, list) else [row for part in checks.values() for row in part]
    for outcomes in ({"reject"}, {"hold"}):
        yield from (row for row in rows if row.get("outcome") in outcomes)
