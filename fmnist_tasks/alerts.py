"""The one seam through which a person is told something.

An alert is always a log line. It goes through every channel there is (`channels`), once for each event, however often
a task is tried: the first to write the event's mark into the store sends it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from fmnist_tasks.channels import Kind, Message, deliver
from fmnist_tasks.errors import FmnistError, RejectedError
from fmnist_tasks.registry.champion import champion
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.runs import run_key
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import DAG_ID, INCLUDE, Settings
from fmnist_tasks.templates import environment

log = logging.getLogger(__name__)

_KINDS: dict[str, Kind] = {  # of events; all others are failures
    "champion changed": "success",
    "hold waiting": "warning",
    "batch quarantined": "warning",
}
_LEVELS = {"success": logging.INFO, "warning": logging.WARNING, "failure": logging.ERROR}


@dataclass(frozen=True)
class Alert:
    """Something a person should know: what kind of event, in which run, if in any, and what happened, in sentences."""

    event: str
    run_id: str | None
    text: str
    dag_id: str = DAG_ID


def send(alert: Alert) -> None:
    """Tell a person, unless that has been done; never raises."""
    in_service, kind = _in_service(), _KINDS.get(alert.event, "failure")
    where = f"{alert.dag_id}, run {alert.run_id}" if alert.run_id else alert.dag_id
    log.log(_LEVELS[kind], "ALERT %s in %s: %s. %s", alert.event, where, alert.text, in_service)
    if not _first(alert):
        log.info("this alert was sent before")
        return
    facts = {"alert": alert, "in_service": in_service, "link": _link(alert), "kind": kind}
    deliver(
        Message(
            kind=kind,
            subject=f"{alert.dag_id}: {alert.event}",
            text=_render("alert.txt", facts),
            page=_render("alert.html", facts),
        )
    )


def task_failed(context: Mapping[str, Any]) -> None:
    """Failure callback of every Airflow task; runs in the task's process, after its last try."""
    error = context.get("exception")
    event = "rejected" if isinstance(error, RejectedError) else "run failed"
    text = f"Task {context['task_instance'].task_id}: {error or 'stopped without an exception'}"
    send(Alert(event, context["run_id"], text, context["dag"].dag_id))


def run_timed_out(context: Mapping[str, Any]) -> None:
    """Failure callback of the whole run; speaks only for what no task can report, the run's own time limit."""
    if context.get("reason") == "timed_out":
        text = "The run exceeded its time limit and was stopped"
        send(Alert("run failed", context["run_id"], text, context["dag"].dag_id))


def overdue(now: datetime) -> str:
    """Tell a person if no run has ended well for longer than is allowed; one sentence about how it stands."""
    settings = Settings.from_environment()
    store = open_store(settings.store)
    ended = [stat for stat in store.list("runs/") if stat.key.endswith(("/promote.json", "/detect_change.json"))]
    for stat in sorted(ended, key=lambda stat: stat.modified, reverse=True):
        record = read_document(store, stat.key)
        if record["status"] == "done" and (record["step"] == "promote" or not record["result"]["changed"]):
            break
    else:
        return "no run has ended well yet"
    text = f"The last run that ended well did so at {stat.modified:%Y-%m-%d %H:%M} UTC"
    if now - stat.modified > settings.overdue:
        limit = f"that is more than {settings.overdue / timedelta(days=1):g} days ago"
        send(Alert("no successful run", record["run_id"], f"{text}; {limit}"))
        return f"{text}; {limit}"
    return text


def airflow_address() -> str:
    """Where people find Airflow's UI, as far as its configuration says."""
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


def _first(alert: Alert) -> bool:
    """Whether nobody has been told of this event, as far as the store knows; from now on it does."""
    if alert.run_id is None:
        return True
    event = hashlib.sha256(repr(alert).encode()).hexdigest()
    try:
        store = open_store(Settings.from_environment().store)
        return store.put_if_absent(
            run_key(alert.run_id, f"alerts/{event[:16]}.json"), seal({"event": alert.event, "text": alert.text})
        )
    except FmnistError as error:
        log.warning("whether this alert was sent before cannot be known: %s", error)
        return True


def _link(alert: Alert) -> str:
    """Where the run is in Airflow's UI, or nothing if that does not know its own address."""
    address = airflow_address()
    run = f"/runs/{quote(alert.run_id)}" if alert.run_id else ""
    return f"{address}/dags/{alert.dag_id}{run}" if address else ""


def _in_service() -> str:
    try:
        entry = champion(open_store(Settings.from_environment().store))
    except FmnistError as error:
        return f"Which champion is in service cannot be read: {error}"
    return f"Champion in service: {entry.version}" if entry else "There is no champion yet"


def _render(template: str, facts: dict[str, Any]) -> str:
    return environment(INCLUDE / "templates").get_template(template).render(facts)
