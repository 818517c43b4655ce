"""The hourly watch: it delivers pending alerts, reports failures without an alert, and notices missing runs.

Times come from the champion log and the records, by the store's clock. The modification times of objects are not used
for successes, since a cleared task writes its record again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import ExitStack
from datetime import datetime, timedelta
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import urlopen

from fmnist_tasks.alerts import outbox
from fmnist_tasks.alerts.callbacks import describe_record
from fmnist_tasks.alerts.events import Alert, find_event
from fmnist_tasks.alerts.sending import compute_alert_id, deliver_pending, send_alert
from fmnist_tasks.credentials import find_secret
from fmnist_tasks.errors import READ_ERRORS, AccessError, IntegrityError, MissingError, SettingsError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.runs import read_record_at
from fmnist_tasks.registry.store import Stat, Store, is_ahead, map_parallel
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.schemas.alerts import SavedAlert, WatchStart
from fmnist_tasks.schemas.runs import StepRecord
from fmnist_tasks.settings import ALERT_LOOKBACK, RUN_LIMIT, SHELL_SUFFIX, TASK_LIMIT, Settings, list_datasets, name_dag

log = logging.getLogger(__name__)

_START_KEY = "alerts/watch.json"  # holds the time of the first watch
_RETRY_PERIOD = TASK_LIMIT + timedelta(hours=1)  # within it, a retryable failure is not reported
_WEEK = timedelta(days=7)
_PING_SECONDS = 10
_MAX_NAMED_RECORDS = 5  # damaged ones in an error
_FLUSH_SECONDS = 600  # after which no delivery starts


def check_pipeline() -> str:
    """Alert if no run has succeeded, report failures without an alert, deliver pending alerts; return a summary.

    Raises a :class:`FmnistError` if the store cannot be read or, after everything else, if a record is damaged. Pings
    `FMNIST_HEARTBEAT_URL` on success.
    """
    settings, heartbeat_url = Settings.from_environment(), read_heartbeat_url()
    now = outbox.read_time(open_default_store())
    damaged: list[str] = []
    summaries: list[str] = []
    with ExitStack() as stack:  # each of them runs, in reverse order, whatever the others raise
        stack.callback(deliver_pending, _FLUSH_SECONDS)
        for dataset in ("", *list_datasets()):
            store = open_default_store(dataset)
            stack.callback(_report_failures, store, now, damaged)
            stack.callback(_report_changes, store, now)
            stack.callback(_check_success, store, settings.overdue_after, now, damaged, summaries)
    if damaged:
        raise IntegrityError(f"{'; '.join(sorted(set(damaged))[:_MAX_NAMED_RECORDS])}. Restore or delete these records")
    if heartbeat_url:
        _ping(heartbeat_url)
    return ". ".join(summaries)


def read_heartbeat_url() -> str | None:
    """Return the URL that each successful watch requests; raises :class:`SettingsError` if it is not an HTTP URL.

    It is a secret, so it is not among the settings, which every process that parses DAG files reads.
    """
    url = find_secret("FMNIST_HEARTBEAT_URL")
    if url and not url.startswith(("http://", "https://")):
        raise SettingsError("FMNIST_HEARTBEAT_URL: must begin with http:// or https://")
    return url


def _read_recent(store: Store, now: datetime, damaged: list[str]) -> dict[str, list[tuple[datetime, StepRecord]]]:
    """Return the records of recent runs, by run, each with the time when it was written."""
    stats: dict[str, list[Stat]] = defaultdict(list)
    for stat in store.list("runs/"):
        _, run_id, *name = stat.key.split("/")
        if len(name) == 1 and name[0].endswith(".json"):
            stats[run_id].append(stat)
    recent = {
        run_id: run_stats
        for run_id, run_stats in stats.items()
        if now - max(stat.modified for stat in run_stats) < ALERT_LOOKBACK + RUN_LIMIT
    }
    return {
        run_id: [
            (stat.modified, record)
            for stat, record in zip(run_stats, _read_all(store, run_stats, damaged), strict=True)
            if record
        ]
        for run_id, run_stats in recent.items()
    }


def _read_all(store: Store, stats: list[Stat], damaged: list[str]) -> list[StepRecord | None]:
    """Return the records; None for one that was pruned in the meantime or cannot be read, which `damaged` collects."""

    def read(stat: Stat) -> StepRecord | None:
        try:
            return read_record_at(store, stat.key)
        except MissingError:
            return None
        except (IntegrityError, AccessError) as error:
            damaged.append(str(error))
            return None

    return map_parallel(read, stats)


def _report_changes(store: Store, now: datetime) -> None:
    """Send the alerts about changes of the champion that killed processes did not send."""
    outbox_store = open_default_store()
    for entry in reversed(champion.list_entries(store)):
        if now - datetime.fromisoformat(entry.time) > ALERT_LOOKBACK:
            break
        if not entry.changes_champion:
            continue
        is_promotion = entry.action == "promote"
        change = (
            f"{entry.version} is now the champion"
            if is_promotion
            else f"{entry.actor} rolled back from {entry.replaces} to {entry.version}"
        )
        alert = Alert(
            "champion changed",
            entry.write_id if is_promotion else None,
            f"{change}: {entry.reason}",
            name_dag(store.dataset) if is_promotion else "",
            identity=f"entry {entry.sequence}",
            dataset=store.dataset,
        )
        if not outbox.is_known(outbox_store, compute_alert_id(alert)):
            send_alert(alert)


def _report_failures(store: Store, now: datetime, damaged: list[str]) -> None:
    """Send the alerts about failures that killed processes did not send."""
    outbox_store = open_default_store()
    for run_id, records in _read_recent(store, now, damaged).items():
        for written, record in records:
            if record.status == "done" or now - written > ALERT_LOOKBACK or _is_by_shell(record):
                continue
            is_running = record.status == "running"
            is_recent = now - written < _RETRY_PERIOD and not is_ahead(written, now)
            if is_recent and (is_running or record.retryable):
                continue
            alert = describe_record(record, store.dataset)
            if outbox.is_known(outbox_store, compute_alert_id(alert)) or (
                is_running and _has_failure(outbox_store, run_id, written)
            ):
                continue
            send_alert(alert)
        last = max((written for written, _ in records), default=now)
        is_from_shell = any(record.step == "ingest" and _is_by_shell(record) for _, record in records)
        if (
            now - last > RUN_LIMIT
            and not is_from_shell
            and not _has_ended(records)
            and not _has_failure(outbox_store, run_id, last)
        ):
            text = (
                "The run has neither ended nor failed, and has saved no record since "
                f"{last:%Y-%m-%d %H:%M} UTC: it exceeded its time limit, or was stopped or rejected manually"
            )
            send_alert(
                Alert("run failed", run_id, text, name_dag(store.dataset), identity="no end", dataset=store.dataset)
            )


def _is_by_shell(record: StepRecord) -> bool:
    """Whether the step was run from a shell, whose user has seen the result."""
    return record.actor.endswith(SHELL_SUFFIX)


def _has_ended(records: list[tuple[datetime, StepRecord]]) -> bool:
    """Whether a record shows that the run has ended, or that a step did not, which is reported as a failure."""
    return any(record.ends_run for _, record in records)


def _has_failure(store: Store, run_id: str, since: datetime) -> bool:
    """Whether an alert about a failure of the run was saved since then."""
    for prefix in (outbox.PENDING, outbox.DELIVERED, outbox.UNDELIVERABLE):
        for stat in store.list(prefix):
            if stat.key.endswith(".json") and stat.key.count(".") == 1:
                try:
                    alert = SavedAlert.parse(read_document(store, stat.key), stat.key)
                except READ_ERRORS:
                    continue
                is_failure = find_event(alert.event).kind == "failure"
                if alert.run_id == run_id and is_failure and datetime.fromisoformat(alert.created) >= since:
                    return True
    return False


def _check_success(
    store: Store, overdue_after: timedelta, now: datetime, damaged: list[str], summaries: list[str]
) -> None:
    """Alert, once a week, if the last success is too long ago; add a sentence about it to the summaries."""
    start, last = _find_start(store, now), _find_last_success(store, now, damaged)
    since = last or start
    of = f" of {store.dataset}" if store.dataset else ""
    text = (
        f"The last successful run{of} was at {since:%Y-%m-%d %H:%M} UTC"
        if last
        else f"No run{of} has succeeded since fmnist_watch first ran, at {since:%Y-%m-%d %H:%M} UTC"
    )
    if now - since <= overdue_after:
        summaries.append(text)
        return
    days = f"{(now - since) / timedelta(days=1):.0f} days, more than the {overdue_after / timedelta(days=1):g} allowed"
    week = (now - since - overdue_after) // _WEEK + 1
    send_alert(
        Alert(
            "no successful run",
            None,
            f"{text}; that is {days}. This is alert number {week}, sent weekly",
            name_dag(store.dataset),
            headline=f"for {days}",
            identity=f"{since.isoformat()} {week}",
            dataset=store.dataset,
        )
    )
    summaries.append(f"{text}; that is {days}")


def _find_last_success(store: Store, now: datetime, damaged: list[str]) -> datetime | None:
    """Return when a run last promoted a champion or ended because nothing had changed, or None.

    Times in the future are ignored.
    """
    promotions = (
        datetime.fromisoformat(entry.time)
        for entry in reversed(champion.list_entries(store))
        if entry.action == "promote"
    )
    last = next((time for time in promotions if not is_ahead(time, now)), None)
    stats = [stat for stat in store.list("runs/") if stat.key.endswith("/detect_change.json")]
    for stat in sorted(stats, key=lambda stat: stat.modified, reverse=True):
        if last and stat.modified <= last:
            break  # the others are older
        (record,) = _read_all(store, [stat], damaged)
        if record and record.status == "done" and record.found_no_change:
            # The run's time of creation, which clearing its task does not change.
            created = datetime.fromisoformat(record.created)
            if not is_ahead(created, now):
                last = max(last, created) if last else created
    return last


def _find_start(store: Store, now: datetime) -> datetime:
    """Return when the watch first ran; now, if it never ran before or the stored time is damaged or in the future."""
    document = seal(WatchStart(time=now.isoformat()).to_json())
    store.put_if_absent(_START_KEY, document)
    try:
        start = datetime.fromisoformat(WatchStart.parse(read_document(store, _START_KEY), _START_KEY).time)
    except IntegrityError as error:
        log.warning("the time since which runs are watched starts again: %s", error)
    else:
        if not is_ahead(start, now):
            return start
    store.put(_START_KEY, document)
    return now


def _ping(url: str) -> None:
    """Request the external monitor's URL, a secret that must not be logged."""
    try:
        # Not urllib3, which logs the URL of a request that it retries. `read_heartbeat_url` allows http and https only.
        with urlopen(url, timeout=_PING_SECONDS):  # noqa: S310
            log.info("FMNIST_HEARTBEAT_URL: requested")
    except HTTPError as error:
        log.error("FMNIST_HEARTBEAT_URL: responded with status %d", error.code)
    except (OSError, ValueError, HTTPException) as error:
        log.error("FMNIST_HEARTBEAT_URL: cannot be reached (%s)", type(error).__name__)
