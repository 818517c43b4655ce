"""The hourly look at what nothing else reports: alerts that wait, failures without an alert, and runs that never come.

Times are those of the champion log and the records, by the store's clock, not those at which objects were last written:
a cleared task writes its record again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from fmnist_tasks.alerts import outbox
from fmnist_tasks.alerts.callbacks import describe_record
from fmnist_tasks.alerts.events import Alert, find_event
from fmnist_tasks.alerts.sending import deliver_pending, find_id, send
from fmnist_tasks.errors import MissingError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Stat, Store, open_store, side_by_side
from fmnist_tasks.settings import DAG_ID, RUN_LIMIT, TASK_LIMIT, Settings

log = logging.getLogger(__name__)

RECENT = timedelta(days=7)  # how far back failures without an alert are looked for
_BEGAN = "alerts/watch.json"  # when the first watch ran
_RETRIED_FOR = TASK_LIMIT + timedelta(hours=1)  # within it, what may be retried is not yet a failure
_WEEK = timedelta(days=7)
_PING_SECONDS = 10
_FLUSH_SECONDS = 600

Record = dict[str, Any]


def watch() -> str:
    """Report failures that nobody was told of, deliver what waits, and alert if no run succeeds; how things stand.

    Raises a :class:`FmnistError` if the store cannot be read. Pings `FMNIST_HEARTBEAT_URL` if all went well.
    """
    settings = Settings.from_environment()
    store = open_store(settings.store)
    now = outbox.read_time(store)
    try:
        summary = _check_success(store, settings.overdue, now)
    finally:
        try:
            _report_changes(store, now)
            _report_failures(store, now)
        finally:
            deliver_pending(_FLUSH_SECONDS)
    if settings.heartbeat_url:
        _ping(settings.heartbeat_url)
    return summary


def _read_recent(store: Store, now: datetime) -> dict[str, list[tuple[datetime, Record]]]:
    """By run of Airflow's: its records with the times of writing, if one was written lately."""
    stats: dict[str, list[Stat]] = defaultdict(list)
    for stat in store.list("runs/"):
        _, run_id, *name = stat.key.split("/")
        if len(name) == 1 and name[0].endswith(".json") and not run_id.startswith("shell__"):
            stats[run_id].append(stat)
    recent = {
        run_id: found
        for run_id, found in stats.items()
        if now - max(stat.modified for stat in found) < RECENT + RUN_LIMIT
    }
    return {
        run_id: [(stat.modified, record) for stat, record in zip(found, _read_all(store, found), strict=True) if record]
        for run_id, found in recent.items()
    }


def _read_all(store: Store, stats: list[Stat]) -> list[Record]:
    """The records of steps; an empty one for what was pruned meanwhile, or is none."""

    def read(stat: Stat) -> Record:
        try:
            document = read_document(store, stat.key)
        except MissingError:
            return {}
        return document if "status" in document else {}

    return side_by_side(read, stats)


def _report_changes(store: Store, now: datetime) -> None:
    """Send the alerts about changes of the champion that a killed process did not."""
    for entry in _read_log_backwards(store):
        if now - datetime.fromisoformat(entry.time) > RECENT:
            break
        if not entry.changes_champion:
            continue
        promoted = entry.action == "promote"
        change = (
            "is the champion now"
            if promoted
            else f"is the champion again, by {entry.actor}, in place of {entry.replaces}"
        )
        alert = Alert(
            "champion changed",
            entry.write_id if promoted else None,
            f"{entry.version} {change}: {entry.reason}",
            DAG_ID if promoted else "",
            identity=f"entry {entry.sequence}",
        )
        if not outbox.is_known(store, find_id(alert)):
            send(alert)


def _report_failures(store: Store, now: datetime) -> None:
    """Send the alerts that a killed process did not."""
    for run_id, found in _read_recent(store, now).items():
        for written, record in found:
            retried = record.get("retryable", False) and now - written < _RETRIED_FOR
            if record["status"] == "done" or retried or now - written > RECENT:
                continue
            alert = describe_record(record)
            if not outbox.is_known(store, find_id(alert)):
                send(alert)
        if _has_vanished(found, now) and not _has_failure(store, run_id):
            last = max(written for written, _ in found)
            text = (
                "The run has neither ended nor failed, and no step of it has been recorded since "
                f"{last:%Y-%m-%d %H:%M} UTC: it exceeded its time limit, or was stopped or rejected by hand"
            )
            send(Alert("run failed", run_id, text, DAG_ID, identity="no end"))


def _has_vanished(found: list[tuple[datetime, Record]], now: datetime) -> bool:
    """Whether a run has no end, although it must have come to one."""
    records = [record for _, record in found]
    ended = any(
        record["status"] != "done" or record["step"] == "promote" or _found_nothing_new(record) for record in records
    )
    return bool(found) and not ended and now - max(written for written, _ in found) > RUN_LIMIT


def _has_failure(store: Store, run_id: str) -> bool:
    """Whether an alert about a failure of the run is known."""
    for prefix in (outbox.PENDING, outbox.DELIVERED, outbox.UNDELIVERABLE):
        for stat in store.list(prefix):
            if stat.key.count(".") == 1:
                document = read_document(store, stat.key)
                if document["run_id"] == run_id and find_event(document["event"]).kind == "failure":
                    return True
    return False


def _check_success(store: Store, overdue: timedelta, now: datetime) -> str:
    """Alert if the last success is too long ago, once a week; one sentence about it."""
    began, last = _find_beginning(store, now), _find_last_success(store)
    since = last or began
    text = (
        f"The last successful run was at {since:%Y-%m-%d %H:%M} UTC"
        if last
        else f"No run has succeeded since fmnist_watch first ran, at {since:%Y-%m-%d %H:%M} UTC"
    )
    if now - since <= overdue:
        return text
    days = f"{(now - since) / timedelta(days=1):.0f} days, more than the {overdue / timedelta(days=1):g} allowed"
    week = (now - since - overdue) // _WEEK + 1
    send(
        Alert(
            "no successful run",
            None,
            f"{text}; that is {days}. Alert number {week} about it, one a week",
            DAG_ID,
            headline=f"for {days}",
            identity=f"{since.isoformat()} {week}",
        )
    )
    return f"{text}; that is {days}"


def _find_last_success(store: Store) -> datetime | None:
    """When a run last promoted a champion or found nothing new, or None."""
    promoted = (entry.time for entry in _read_log_backwards(store) if entry.action == "promote")
    time = next(promoted, None)
    last = datetime.fromisoformat(time) if time else None
    stats = [stat for stat in store.list("runs/") if stat.key.endswith("/detect_change.json")]
    for stat in sorted(stats, key=lambda stat: stat.modified, reverse=True):
        if last and stat.modified <= last:
            break  # nor is what comes after it newer
        (record,) = _read_all(store, [stat])
        if record and record["status"] == "done" and _found_nothing_new(record):
            # When the run was created: clearing its task does not change that.
            created = datetime.fromisoformat(record["created"])
            last = max(last, created) if last else created
    return last


def _read_log_backwards(store: Store) -> Iterable[champion.Entry]:
    """The entries of the champion log, newest first, read in pieces that double."""
    current = champion.champion(store)
    upper, size = (current.sequence if current else 0), 4
    while upper > 0:
        lower = max(0, upper - size)
        yield from (one for one in reversed(champion.history(store, after=lower)) if one.sequence <= upper)
        upper, size = lower, 2 * size


def _found_nothing_new(record: Record) -> bool:
    return bool(record["step"] == "detect_change" and record.get("result", {}).get("changed") is False)


def _find_beginning(store: Store, now: datetime) -> datetime:
    """When the watch first ran, which is now if this is the first time."""
    store.put_if_absent(_BEGAN, seal({"time": now.isoformat()}))
    return datetime.fromisoformat(read_document(store, _BEGAN)["time"])


def _ping(url: str) -> None:
    """Tell the monitor outside that all is well; the address is a secret, so nothing here repeats it."""
    try:
        # Not urllib3, which logs the address of a request that it retries. The settings allow http and https only.
        with urlopen(url, timeout=_PING_SECONDS):  # noqa: S310
            log.info("FMNIST_HEARTBEAT_URL: fetched")
    except HTTPError as error:
        log.error("FMNIST_HEARTBEAT_URL: answered %d", error.code)
    except (OSError, ValueError, HTTPException) as error:
        log.error("FMNIST_HEARTBEAT_URL: not reached (%s)", type(error).__name__)
