"""An alert as people read it: subject, plain text, and the same as an HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fmnist_tasks.alerts.events import Kind, find_event
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID, INCLUDE
from fmnist_tasks.templates import environment
from fmnist_tasks.text import make_printable

_LONGEST_HEADLINE = 160  # characters
_REPEATED = " (possibly repeated)"


@dataclass(frozen=True)
class Message:
    """What people read, and the id of the alert that it is about."""

    alert_id: str
    kind: Kind
    subject: str
    text: str
    page: str


def render_message(alert_id: str, document: dict[str, Any], *, instance: str, address: str, repeated: bool) -> Message:
    """The message of an alert's document, as the outbox keeps it.

    `address` is that of Airflow's UI, or empty if it is unknown; a message that may arrive a second time says so.
    """
    event = find_event(document["event"])
    title = event.title
    if document["event"] == "run failed" and document["dag_id"]:
        title = f"{document['dag_id']} failed"
    prefix = f"[{instance}] " if instance else ""
    headline = _shorten(document["headline"] or document["text"])
    facts = {
        "title": title,
        "headline": headline,
        "event": event,
        "alert": document,
        "color": {"failure": "#b3261e", "warning": "#a06000", "success": "#17794a"}[event.kind],
        "instance": instance,
        "created": f"{datetime.fromisoformat(document['created']):%Y-%m-%d %H:%M} UTC",
        "expires": _find_expiry(document),
        "links": _build_links(document, address),
        "repeated": repeated,
    }
    return Message(
        alert_id=alert_id,
        kind=event.kind,
        subject=make_printable(f"{prefix}{title}: {headline}{_REPEATED if repeated else ''}"),
        text=_render("alert.txt", facts),
        page=_render("alert.html", facts),
    )


def _build_links(document: dict[str, Any], address: str) -> dict[str, str]:
    """By what they show: addresses of the run, its report, and the section of the runbook."""
    if not address:
        return {}
    links = {}
    dag_id, run_id = document["dag_id"], document["run_id"]
    if dag_id and run_id:
        run = f"{address}/dags/{quote(dag_id)}/runs/{quote(run_id)}"
        if task_id := document.get("task_id"):
            links["Approve or reject"] = f"{run}/tasks/{quote(task_id)}/required_actions"
        links["Run in Airflow"] = run
        if dag_id == DAG_ID:
            links["Report"] = f"{address}/fmnist/runs/{quote(run_id)}"
    elif dag_id:
        links["DAG in Airflow"] = f"{address}/dags/{quote(dag_id)}"
    if document["event"] == "champion changed":
        links["Releases"] = f"{address}/fmnist/"
    links["Runbook"] = f"{address}/fmnist/runbook#{find_event(document['event']).section}"
    return links


def _find_expiry(document: dict[str, Any]) -> str:
    """Until when an approval is waited for, or nothing."""
    if document["event"] != "approval needed":
        return ""
    return f"{datetime.fromisoformat(document['created']) + APPROVAL_LIMIT:%Y-%m-%d %H:%M} UTC"


def _shorten(text: str) -> str:
    flat = make_printable(text)
    return flat if len(flat) <= _LONGEST_HEADLINE else f"{flat[: _LONGEST_HEADLINE - 1].rstrip()}…"


def _render(template: str, facts: dict[str, Any]) -> str:
    rendered = environment(INCLUDE / "templates").get_template(template).render(facts)
    return rendered.encode(errors="replace").decode()
