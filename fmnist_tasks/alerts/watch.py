"""The hourly look at what nothing else reports: alerts that wait, failures without an alert, and runs that never come.

Times are those of the champion log and the records, by the store's clock, not those at which objects were last written:
a cleared task writes its record again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from fmnist_tasks.alerts import outbox
from fmnist_tasks.alerts.callbacks import describe_record
from fmnist_tasks.alerts.events import Alert, find_event
from fmnist_tasks.alerts.sending import deliver_pending, find_id, send
from fmnist_tasks.credentials import find_secret
from fmnist_tasks.errors import IntegrityError, MissingError, SettingsError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.runs import read_at
from fmnist_tasks.registry.store import Stat, Store, is_ahead, open_store, side_by_side
from fmnist_tasks.settings import DAG_ID, RECENT, RUN_LIMIT, SHELL, TASK_LIMIT, Settings

log = logging.getLogger(__name__)

_BEGAN = "alerts/watch.json"  # when the first watch ran
_RETRIED_FOR = TASK_LIMIT + timedelta(hours=1)  # within it, what may be retried is not yet a failure
_WEEK = timedelta(days=7)
_PING_SECONDS = 10
_NAMED = 5  # damaged records in an error
_FLUSH_SECONDS = 600

Record = dict[str, Any]


def watch() -> str:
    """Report failures that nobody was told of, deliver what waits, and alert if no run succeeds; how things stand.

    Raises a :class:`FmnistError` if the store cannot be read or, once all else is done, if a record is damaged. Pings
    `FMNIST_HEARTBEAT_URL` if all went well.
    """
    settings, heartbeat_url = Settings.from_environment(), read_heartbeat_url()
    store = open_store(settings.store)
    now = outbox.read_time(store)
    damaged: list[str] = []
    try:
        summary = _check_success(store, settings.overdue, now, damaged)
    finally:
        try:
            _report_changes(store, now)
            _report_failures(store, now, damaged)
        finally:
            deliver_pending(_FLUSH_SECONDS)
    if damaged:
        raise IntegrityError(f"{'; '.join(sorted(set(damaged))[:_NAMED])}. Restore or delete them")
    if heartbeat_url:
        _ping(heartbeat_url)
    return summary


def read_heartbeat_url() -> str | None:
    """The address that each successful watch fetches, a secret; raises :class:`SettingsError` if it is none of HTTP.

    Not among the settings, which every process reads with the DAG files.
    """
    url = find_secret("FMNIST_HEARTBEAT_URL")
    if url and not url.startswith(("http://", "https://")):
        raise SettingsError("FMNIST_HEARTBEAT_URL: must begin with http:// or https://")
    return url


def _read_recent(store: Store, now: datetime, damaged: list[str]) -> dict[str, list[tuple[datetime, Record]]]:
    """By run of Airflow's: its records with the times of writing, if one was written lately."""
    stats: dict[str, list[Stat]] = defaultdict(list)
    for stat in store.list("runs/"):
        _, run_id, *name = stat.key.split("/")
        if len(name) == 1 and name[0].endswith(".json"):
            stats[run_id].append(stat)
    recent = {
        run_id: found
        for run_id, found in stats.items()
        if now - max(stat.modified for stat in found) < RECENT + RUN_LIMIT
    }
    return {
        run_id: [
            (stat.modified, record)
            for stat, record in zip(found, _read_all(store, found, damaged), strict=True)
            if record
        ]
        for run_id, found in recent.items()
    }


def _read_all(store: Store, stats: list[Stat], damaged: list[str]) -> list[Record]:
    """The records of steps; an empty one for what was pruned meanwhile, is none, or is damaged, which is noted."""

    def read(stat: Stat) -> Record:
        try:
            document = read_at(store, stat.key)
        except MissingError:
            return {}
        except IntegrityError as error:
            damaged.append(str(error))
            return {}
        return document if "status" in document else {}

    return side_by_side(read, stats)


def _report_changes(store: Store, now: datetime) -> None:
    """Send the alerts about changes of the champion that a killed process did not."""
    for entry in reversed(champion.history(store)):
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


def _report_failures(store: Store, now: datetime, damaged: list[str]) -> None:
    """Send the alerts that a killed process did not."""
    for run_id, found in _read_recent(store, now, damaged).items():
        for written, record in found:
            if record["status"] == "done" or now - written > RECENT or _is_by_shell(record):
                continue
            running = record["status"] == "running"
            recent = now - written < _RETRIED_FOR and not is_ahead(written, now)
            if recent and (running or record.get("retryable", False)):
                continue
            alert = describe_record(record)
            if outbox.is_known(store, find_id(alert)) or (running and _has_failure(store, run_id, written)):
                continue
            send(alert)
        last = max((written for written, _ in found), default=now)
        begun_by_shell = any(record["step"] == "ingest" and _is_by_shell(record) for _, record in found)
        if (
            now - last > RUN_LIMIT
            and not begun_by_shell
            and not _has_ended(found)
            and not _has_failure(store, run_id, last)
        ):
            text = (
                "The run has neither ended nor failed, and no step of it has been recorded since "
                f"{last:%Y-%m-%d %H:%M} UTC: it exceeded its time limit, or was stopped or rejected by hand"
            )
            send(Alert("run failed", run_id, text, DAG_ID, identity="no end"))


def _is_by_shell(record: Record) -> bool:
    """Whether somebody ran the step from a shell, and has seen how it ended."""
    return str(record.get("actor", "")).endswith(SHELL)


def _has_ended(found: list[tuple[datetime, Record]]) -> bool:
    """Whether the records of a run show how it ended, or have been reported because they do not."""
    return any(
        record["status"] != "done" or record["step"] == "promote" or _found_nothing_new(record) for _, record in found
    )


def _has_failure(store: Store, run_id: str, since: datetime) -> bool:
    """Whether an alert about a failure of the run is known that is not older than this."""
    for prefix in (outbox.PENDING, outbox.DELIVERED, outbox.UNDELIVERABLE):
        for stat in store.list(prefix):
            if stat.key.endswith(".json") and stat.key.count(".") == 1:
                try:
                    document = read_document(store, stat.key)
                except (IntegrityError, MissingError):
                    continue
                kind, created = find_event(document["event"]).kind, datetime.fromisoformat(document["created"])
                if document["run_id"] == run_id and kind == "failure" and created >= since:
                    return True
    return False


def _check_success(store: Store, overdue: timedelta, now: datetime, damaged: list[str]) -> str:
    """Alert if the last success is too long ago, once a week; one sentence about it."""
    began, last = _find_beginning(store, now), _find_last_success(store, now, damaged)
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


def _find_last_success(store: Store, now: datetime, damaged: list[str]) -> datetime | None:
    """When a run last promoted a champion or found nothing new, or None; a time that lies ahead says nothing."""
    promoted = (
        datetime.fromisoformat(one.time) for one in reversed(champion.history(store)) if one.action == "promote"
    )
    last = next((time for time in promoted if not is_ahead(time, now)), None)
    stats = [stat for stat in store.list("runs/") if stat.key.endswith("/detect_change.json")]
    for stat in sorted(stats, key=lambda stat: stat.modified, reverse=True):
        if last and stat.modified <= last:
            break  # nor is what comes after it newer
        (record,) = _read_all(store, [stat], damaged)
        if record and record["status"] == "done" and _found_nothing_new(record):
            # When the run was created: clearing its task does not change that.
            created = datetime.fromisoformat(record["created"])
            if not is_ahead(created, now):
                last = max(last, created) if last else created
    return last


def _found_nothing_new(record: Record) -> bool:
    return bool(record["step"] == "detect_change" and record.get("result", {}).get("changed") is False)


def _find_beginning(store: Store, now: datetime) -> datetime:
    """When the watch first ran, which is now if this is the first time, or if that lies ahead."""
    document = seal({"time": now.isoformat()})
    store.put_if_absent(_BEGAN, document)
    began = datetime.fromisoformat(read_document(store, _BEGAN)["time"])
    if is_ahead(began, now):
        store.put(_BEGAN, document)
        return now
    return began


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
