"""Send alerts: log them, save them in the outbox, and deliver them from there.

`send_alert` and `deliver_due_alerts` never raise: a failed alert must not change the result of a task.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from fmnist_tasks.alerts import outbox
from fmnist_tasks.alerts.channels import deliver, find_channels
from fmnist_tasks.alerts.events import Alert, find_event
from fmnist_tasks.alerts.message import Message, render_message
from fmnist_tasks.errors import FmnistError
from fmnist_tasks.registry.champion import find_champion
from fmnist_tasks.registry.documents import compute_digest
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.schemas.alerts import SavedAlert
from fmnist_tasks.settings import name_dag, read_instance

log = logging.getLogger(__name__)

_MAX_TEXT_LENGTH = 10_000  # characters; mail servers and chats refuse much longer texts
_LEVELS = {"success": logging.INFO, "warning": logging.WARNING, "failure": logging.ERROR}


def send_alert(alert: Alert) -> None:
    """Log the alert and send it through all channels, unless it was sent before or is waiting; never raises."""
    saved = _describe(alert)
    origin = f"{saved.dag_id or 'no DAG'}{f', run {alert.run_id}' if alert.run_id else ''}"
    level = _LEVELS[find_event(alert.event).kind]
    log.log(level, "ALERT %s in %s: %s. %s", alert.event, origin, alert.text, saved.champion)
    alert_id = compute_alert_id(alert)
    try:
        store = open_default_store()
        is_new = outbox.enqueue(store, alert_id, _set_store_time(saved, store))
    except Exception as error:  # noqa: BLE001 - any: the alert must go out
        log.error("the alert cannot be saved, so it is sent once, without retries: %s", error)
        _send_unsaved(alert_id, saved)
        return
    if not is_new:
        log.info("this alert was sent before, or is waiting in the store")
    deliver_due_alerts()


def deliver_due_alerts(max_seconds: float = 60) -> None:
    """Deliver the pending alerts that are due; never raises: `fmnist_watch` fails instead, at its next run."""
    try:
        deliver_pending(max_seconds)
    except FmnistError as error:
        log.warning("pending alerts will be sent later: %s", error)
    except Exception:
        log.exception("pending alerts will be sent later")


def deliver_pending(max_seconds: float) -> None:
    """Deliver the pending alerts that are due; raises what stops it.

    No delivery starts after `max_seconds`. Without pending alerts, it costs one listing.
    """
    store = open_default_store()
    if pending := outbox.find_pending(store):
        channels, faults = find_channels()
        for fault in faults:
            log.error("alerts: %s", fault)
        outbox.Flush(store, channels, faults, _render, partial(_save_report, store), max_seconds).run(pending)


def compute_alert_id(alert: Alert) -> str:
    """Return the alert's ID in the outbox; the same event of the same run has the same ID in every process."""
    identity = alert.identity or (alert.text if alert.run_id else uuid4().hex)
    dataset = [alert.dataset] if alert.dataset else []
    return compute_digest([alert.event, alert.run_id and [_find_dag(alert), alert.run_id], identity, *dataset])[:24]


def find_airflow_address() -> str:
    """Return the URL of Airflow's UI from its configuration; empty if not set."""
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


def make_test_message() -> Message:
    """Return the message that `fmnist alert-test` sends."""
    alert = Alert("test", None, "This channel delivers the alerts of the retraining pipeline")
    return _render(uuid4().hex, _describe(alert), False)


def _describe(alert: Alert) -> SavedAlert:
    """Return the alert for the outbox, with the time of this machine."""
    run_id = alert.run_id or (None if alert.dag_id else os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"))
    return SavedAlert(
        event=alert.event,
        dataset=alert.dataset,
        dag_id=_find_dag(alert),
        run_id=run_id,
        task_id=alert.task_id,
        text=alert.text if len(alert.text) <= _MAX_TEXT_LENGTH else f"{alert.text[:_MAX_TEXT_LENGTH]} …",
        headline=alert.headline,
        champion=_describe_champion(alert.dataset),
        created=datetime.now(UTC).isoformat(),
    )


def _set_store_time(alert: SavedAlert, store: Store) -> SavedAlert:
    """Return the alert with the time of the store."""
    return alert.model_copy(update={"created": outbox.read_time(store).isoformat()})


def _find_dag(alert: Alert) -> str:
    """Return the DAG that the alert is about; empty if it comes from the Releases page or a shell."""
    if alert.dag_id is not None:
        return alert.dag_id
    return os.environ.get("AIRFLOW_CTX_DAG_ID") or (name_dag(alert.dataset) if alert.run_id else "")


def _describe_champion(dataset: str) -> str:
    try:
        entry = find_champion(open_default_store(dataset))
    except Exception as error:  # noqa: BLE001 - any: the alert must go out
        return f"The current champion cannot be read: {error}"
    return f"Current champion: {entry.version}" if entry else "There is no champion yet"


def _render(alert_id: str, alert: SavedAlert, repeated: bool) -> Message:
    return render_message(alert_id, alert, instance=read_instance(), address=find_airflow_address(), repeated=repeated)


def _send_unsaved(alert_id: str, alert: SavedAlert) -> None:
    """Send without the outbox. It is labelled: it may be sent again, if it was saved after all or is in a record."""
    try:
        message = _render(alert_id, alert, True)
        channels, faults = find_channels()
        for fault in faults:
            log.error("alerts: %s", fault)
        for channel in channels:
            deliver(channel, message)
    except Exception:
        log.exception("the alert cannot be sent")


def _save_report(store: Store, alert: Alert) -> str:
    """Save an alert about an undeliverable one; return its ID."""
    alert_id = compute_alert_id(alert)
    outbox.enqueue(store, alert_id, _set_store_time(_describe(alert), store))
    return alert_id
