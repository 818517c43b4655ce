"""Airflow's callbacks for failed tasks and runs, and the alerts about the records of steps.

A failed step is identified by its record, so the callback of its task and `fmnist_watch`, which reads the records
later, send the same alert.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.sending import send_alert
from fmnist_tasks.errors import FmnistError, IntegrityError, RejectedError
from fmnist_tasks.registry.runs import find_records
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.schemas.evaluation import Check
from fmnist_tasks.schemas.runs import RESULTS, GateResult, StepRecord, ValidationResult, parse_result
from fmnist_tasks.settings import APPROVAL_LIMIT, DEFAULT_DATASET, WATCH_ID, find_dataset, name_dag
from fmnist_tasks.text import replace_surrogates

log = logging.getLogger(__name__)


def alert_task_failure(context: Mapping[str, Any]) -> None:
    """Failure callback of every Airflow task; runs in the task's process, after its last attempt."""
    send_alert(_describe_failure(context))


def alert_approval_request(context: Mapping[str, Any]) -> None:
    """Notifier of a task that waits for an approval; runs with each request."""
    task, operator = context["task_instance"], context["task"]
    send_alert(
        Alert(
            "approval needed",
            context["run_id"],
            " ".join([operator.subject, *operator.body.splitlines()[:1]]),
            context["dag"].dag_id,
            headline=operator.subject,
            identity=_name_attempt(task),
            task_id=task.task_id,
            dataset=_find_dataset(context),
        )
    )


def alert_run_timeout(context: Mapping[str, Any]) -> None:
    """Failure callback of a run; only reports an exceeded time limit, since failed tasks report themselves."""
    if context.get("reason") == "timed_out":
        text = "The run exceeded its time limit and was stopped"
        started = getattr(context.get("dag_run"), "start_date", None)  # changes when the run is cleared
        send_alert(
            Alert(
                "run failed",
                context["run_id"],
                text,
                context["dag"].dag_id,
                identity=f"time limit {started}",
                dataset=_find_dataset(context),
            )
        )


def _find_dataset(context: Mapping[str, Any]) -> str:
    """Return the dataset of a task: that of its DAG, or of the form of a DAG that serves all datasets."""
    if (dataset := find_dataset(context["dag"].dag_id)) is not None:
        return dataset
    chosen: str = (context.get("params") or {}).get("dataset", DEFAULT_DATASET)
    return "" if chosen == DEFAULT_DATASET else chosen


def describe_record(record: StepRecord, dataset: str, task_id: str = "") -> Alert:
    """Return the alert about a step that was rejected, has failed or has not ended."""
    rejected, outcome = record.status == "rejected", record.outcome
    if record.status == "running":
        outcome = f"it started at {record.started[:16]} UTC and has not ended; its process was probably killed"
    return Alert(
        "rejected" if rejected else "run failed",
        record.run_id,
        f"Task {task_id or record.step}: {outcome}",
        name_dag(dataset),
        headline=_write_headline(record) if rejected else "",
        # A step that seems to be running may still fail, which is another alert.
        identity=f"{record.step} {record.started}{' running' if record.status == 'running' else ''}",
        dataset=dataset,
    )


def _describe_failure(context: Mapping[str, Any]) -> Alert:
    error, task = context.get("exception"), context["task_instance"]
    dag_id, run_id, dataset = context["dag"].dag_id, context["run_id"], _find_dataset(context)
    is_retraining = dag_id == name_dag(dataset)
    if response := _describe_response(context):
        return response
    try:
        if is_retraining and (record := _find_record(dataset, run_id, task, replace_surrogates(str(error)))):
            return describe_record(record, dataset, task.task_id)
    except FmnistError as record_error:
        log.warning("the record of the failed step cannot be read: %s", record_error)
    text = f"Task {task.task_id}: {error or 'stopped without an exception'}"
    event = "rejected" if isinstance(error, RejectedError) and is_retraining else "run failed"
    if dag_id == WATCH_ID:  # it runs every hour, but reports the same cause once a day
        return Alert(event, None, text, dag_id, identity=f"{datetime.now(UTC):%Y-%m-%d} {text}")
    return Alert(event, run_id, text, dag_id, identity=f"{_name_attempt(task)} {text}", dataset=dataset)


def _describe_response(context: Mapping[str, Any]) -> Alert | None:
    """Return the alert about a user's rejection or an expired approval; None for any other failure."""
    from airflow.providers.standard.exceptions import HITLRejectException, HITLTimeoutError

    error, task = context.get("exception"), context["task_instance"]
    fields = {
        "run_id": context["run_id"],
        "dag_id": context["dag"].dag_id,
        "identity": _name_attempt(task),
        "dataset": _find_dataset(context),
    }
    if isinstance(error, HITLTimeoutError):
        text = f"Task {task.task_id}: nobody responded within {APPROVAL_LIMIT.days} days, which counts as a rejection"
        return Alert("approval expired", text=text, headline=f"no response within {APPROVAL_LIMIT.days} days", **fields)
    if not isinstance(error, HITLRejectException):
        return None
    return Alert("rejected by a user", text=f"Task {task.task_id}: {error}", headline=str(error), **fields)


def _name_attempt(task: Any) -> str:
    """Identify one attempt of one task; a task that was cleared and fails again has another number."""
    return f"{task.task_id} {getattr(task, 'map_index', -1)} {getattr(task, 'try_number', 0)}"


def _find_record(dataset: str, run_id: str, task: Any, outcome: str) -> StepRecord | None:
    """Return the record that the failed task has saved, if any."""
    step, index = task.task_id.rpartition(".")[2], getattr(task, "map_index", -1)
    store = open_default_store(dataset)
    for name, record in find_records(store, run_id)[0].items():
        is_mapped = index is not None and index >= 0 and name == f"{step}-{record.parameters['seed'] + index}"
        if (name == step or is_mapped) and record.status != "done" and record.outcome == outcome:
            return record
    return None


def _write_headline(record: StepRecord) -> str:
    """Return the message of the first failed check, and the number of others; empty without checks."""
    failed = list(_find_failed_checks(record))
    if not failed:
        return ""
    first = re.sub(r" \((95% confidence interval|test images) [^()]*\)", "", failed[0].message)
    first = re.sub(r"\bis (\d)", r"\1", first)
    return f"{first}{f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''}"


def _find_failed_checks(record: StepRecord) -> Iterator[Check]:
    """Yield the failed checks, rejecting ones first; none if they cannot be read, since the alert must go out."""
    kind = RESULTS.get(record.step.partition("-")[0])
    if kind is None or record.result is None:
        return
    try:
        result = parse_result(kind, record, f"runs/{record.run_id}/{record.step}.json")
    except IntegrityError as error:
        log.warning("the alert names no check: %s", error)
        return
    checks: list[Check] = []
    if isinstance(result, GateResult):
        checks = result.checks
    elif isinstance(result, ValidationResult):
        checks = [check for sample_checks in result.checks.values() for check in sample_checks]
    for outcome in ("reject", "hold"):
        yield from (check for check in checks if check.outcome == outcome)
