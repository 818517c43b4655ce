"""The message of an alert: subject, plain text and HTML."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fmnist_tasks.alerts.events import Kind, find_event
from fmnist_tasks.schemas.alerts import SavedAlert
from fmnist_tasks.settings import APPROVAL_LIMIT, INCLUDE, find_dataset, find_page
from fmnist_tasks.templates import make_environment
from fmnist_tasks.text import make_printable

_MAX_HEADLINE_LENGTH = 160  # characters
_REPEAT_LABEL = " (possibly repeated)"


@dataclass(frozen=True)
class Message:
    """The message of one alert, ready to send."""

    alert_id: str
    kind: Kind
    subject: str
    text: str
    html: str


def render_message(alert_id: str, alert: SavedAlert, *, instance: str, address: str, repeated: bool) -> Message:
    """Return the message of an alert.

    `address` is the URL of Airflow's UI, or empty if unknown. `repeated` labels a message that may arrive twice.
    """
    event = find_event(alert.event)
    title = f"{alert.dag_id} failed" if alert.event == "run failed" and alert.dag_id else event.title
    origin = ", ".join(filter(None, (instance, alert.dataset)))
    prefix = f"[{origin}] " if origin else ""
    headline = _shorten(alert.headline or alert.text)
    context = {
        "title": title,
        "headline": headline,
        "event": event,
        "alert": alert,
        "color": {"failure": "#b3261e", "warning": "#a06000", "success": "#17794a"}[event.kind],
        "instance": instance,
        "created": f"{datetime.fromisoformat(alert.created):%Y-%m-%d %H:%M} UTC",
        "expires": _compute_expiry(alert),
        "links": _build_links(alert, address),
        "repeated": repeated,
    }
    return Message(
        alert_id=alert_id,
        kind=event.kind,
        subject=make_printable(f"{prefix}{title}: {headline}{_REPEAT_LABEL if repeated else ''}"),
        text=_render("alert.txt", context),
        html=_render("alert.html", context),
    )


def _build_links(alert: SavedAlert, address: str) -> dict[str, str]:
    """Return URLs by label: of the run, its report, and the section of the runbook."""
    if not address:
        return {}
    links = {}
    page = f"{address}{find_page(alert.dataset)}"
    if alert.dag_id and alert.run_id:
        run = f"{address}/dags/{quote(alert.dag_id)}/runs/{quote(alert.run_id)}"
        if alert.task_id:
            links["Approve or reject"] = f"{run}/tasks/{quote(alert.task_id)}/required_actions"
        links["Run in Airflow"] = run
        if find_dataset(alert.dag_id) is not None:
            links["Report"] = f"{page}runs/{quote(alert.run_id)}"
    elif alert.dag_id:
        links["DAG in Airflow"] = f"{address}/dags/{quote(alert.dag_id)}"
    if alert.event == "champion changed":
        links["Releases"] = page
    links["Runbook"] = f"{address}/fmnist/runbook#{find_event(alert.event).section}"
    return links


def _compute_expiry(alert: SavedAlert) -> str:
    """Return when a request for approval expires; empty for other events."""
    if alert.event != "approval needed":
        return ""
    return f"{datetime.fromisoformat(alert.created) + APPROVAL_LIMIT:%Y-%m-%d %H:%M} UTC"


def _shorten(text: str) -> str:
    flat = make_printable(text)
    return flat if len(flat) <= _MAX_HEADLINE_LENGTH else f"{flat[: _MAX_HEADLINE_LENGTH - 1].rstrip()}…"


def _render(template: str, context: dict[str, Any]) -> str:
    rendered = make_environment(INCLUDE / "templates").get_template(template).render(context)
    return rendered.encode(errors="replace").decode()
