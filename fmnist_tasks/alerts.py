"""The one seam through which a person is told something. Without a configured channel an alert is a log line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmnist_tasks.errors import FmnistError, RejectedError
from fmnist_tasks.registry.champion import champion
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """Something a person should know: what kind of event, in which run, and what happened in full sentences."""

    event: str
    run_id: str
    text: str


def send(alert: Alert) -> None:
    """Tell a person."""
    log.error("ALERT %s in run %s: %s", alert.event, alert.run_id, alert.text)


def task_failed(context: Mapping[str, Any]) -> None:
    """Failure callback of every Airflow task; runs in the task's process, after its last try."""
    error = context.get("exception")
    task = context["task_instance"].task_id
    event = "rejected" if isinstance(error, RejectedError) else "run failed"
    text = f"{context['dag'].dag_id}, task {task}: {error or 'stopped without an exception'}. {_in_service()}"
    send(Alert(event, context["run_id"], text))


def run_timed_out(context: Mapping[str, Any]) -> None:
    """Failure callback of the whole run; speaks only for what no task can report, the run's own time limit."""
    if context.get("reason") == "timed_out":
        text = f"{context['dag'].dag_id}: the run exceeded its time limit and was stopped. {_in_service()}"
        send(Alert("run failed", context["run_id"], text))


def _in_service() -> str:
    try:
        entry = champion(open_store(Settings.from_environment().store))
    except FmnistError as error:
        return f"Which champion is in service cannot be read: {error}"
    return f"Champion in service: {entry.version}" if entry else "There is no champion yet"
