"""The one place from which people are notified: an alert is logged, saved in the outbox, and sent from there.

Nothing here raises: what happened must not depend on whether anyone could be told of it.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from fmnist_tasks.alerts import outbox
from fmnist_tasks.alerts.channels import deliver, find_channels
from fmnist_tasks.alerts.events import Alert, find_event
from fmnist_tasks.alerts.message import Message, render_message
from fmnist_tasks.errors import FmnistError
from fmnist_tasks.registry.champion import champion
from fmnist_tasks.registry.documents import digest_of
from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.settings import DAG_ID, read_instance, read_store_uri

log = logging.getLogger(__name__)

_LONGEST_TEXT = 10_000  # characters; servers of mail and chats refuse what is much longer
_LEVELS = {"success": logging.INFO, "warning": logging.WARNING, "failure": logging.ERROR}


def send(alert: Alert) -> None:
    """Notify people of the alert, unless that has been done or is under way; never raises."""
    document = _describe(alert)
    where = f"{document['dag_id'] or 'no DAG'}{f', run {alert.run_id}' if alert.run_id else ''}"
    level = _LEVELS[find_event(alert.event).kind]
    log.log(level, "ALERT %s in %s: %s. %s", alert.event, where, alert.text, document["champion"])
    alert_id = find_id(alert)
    try:
        store = open_store(read_store_uri())
        new = outbox.enqueue(store, alert_id, {**document, "created": outbox.read_time(store).isoformat()})
    except Exception as error:  # noqa: BLE001 - whatever it is, the alert must go out
        log.error("the alert cannot be saved, so it is sent once, now, and not again: %s", error)
        _send_unsaved(alert_id, document)
        return
    if not new:
        log.info("this alert is known: it was sent before, or waits to be")
    flush()


def flush(seconds: float = 60) -> None:
    """Like :func:`deliver_pending`, for those who must not fail with it: the next `fmnist_watch` does."""
    try:
        deliver_pending(seconds)
    except FmnistError as error:
        log.warning("alerts that wait in the store are sent later: %s", error)
    except Exception:
        log.exception("alerts that wait in the store are sent later")


def deliver_pending(seconds: float) -> None:
    """Deliver the alerts that wait in the store, as far as they are due; raises what stops it.

    No delivery begins after so many seconds. Without alerts that wait it costs one listing.
    """
    store = open_store(read_store_uri())
    if waiting := outbox.find_pending(store):
        channels, faults = find_channels()
        for fault in faults:
            log.error("alerts: %s", fault)
        outbox.Flush(store, channels, faults, _render, partial(_save_report, store), seconds).run(waiting)


def find_id(alert: Alert) -> str:
    """What the outbox calls the alert; the same for the same event of the same run, whoever reports it."""
    identity = alert.identity or (alert.text if alert.run_id else uuid4().hex)
    return digest_of([alert.event, alert.run_id and [_find_dag(alert), alert.run_id], identity])[:24]


def airflow_address() -> str:
    """Where people find Airflow's UI, as far as its configuration says."""
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


def make_test_message() -> Message:
    """What `fmnist alert-test` sends."""
    alert = Alert("test", None, "This channel delivers the alerts of the retraining pipeline")
    return _render(uuid4().hex, {**_describe(alert), "created": datetime.now(UTC).isoformat()}, False)


def _describe(alert: Alert) -> dict[str, Any]:
    """The alert as the outbox keeps it, but for its time."""
    run_id = alert.run_id or (None if alert.dag_id else os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"))
    return {
        "event": alert.event,
        "dag_id": _find_dag(alert),
        "run_id": run_id,
        "task_id": alert.task_id,
        "text": alert.text if len(alert.text) <= _LONGEST_TEXT else f"{alert.text[:_LONGEST_TEXT]} …",
        "headline": alert.headline,
        "champion": _describe_champion(),
    }


def _find_dag(alert: Alert) -> str:
    """The DAG that the alert is about; none if it comes from the registry page or a shell."""
    if alert.dag_id is not None:
        return alert.dag_id
    return os.environ.get("AIRFLOW_CTX_DAG_ID") or (DAG_ID if alert.run_id else "")


def _describe_champion() -> str:
    try:
        entry = champion(open_store(read_store_uri()))
    except Exception as error:  # noqa: BLE001 - whatever it is, the alert must go out
        return f"The current champion cannot be read: {error}"
    return f"Current champion: {entry.version}" if entry else "There is no champion yet"


def _render(alert_id: str, document: dict[str, Any], repeated: bool) -> Message:
    return render_message(alert_id, document, instance=read_instance(), address=airflow_address(), repeated=repeated)


def _send_unsaved(alert_id: str, document: dict[str, Any]) -> None:
    """Send without the outbox, labelled: it comes again if it was saved after all, or is found in a record later."""
    try:
        message = _render(alert_id, {**document, "created": datetime.now(UTC).isoformat()}, True)
        channels, faults = find_channels()
        for fault in faults:
            log.error("alerts: %s", fault)
        for channel in channels:
            deliver(channel, message)
    except Exception:
        log.exception("the alert cannot be sent")


def _save_report(store: Store, alert: Alert) -> str:
    """Save an alert about another that is not delivered; its id."""
    alert_id = find_id(alert)
    outbox.enqueue(store, alert_id, {**_describe(alert), "created": outbox.read_time(store).isoformat()})
    return alert_id
