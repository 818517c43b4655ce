"""The outbox: alerts wait in `alerts/pending/` until every channel has accepted them, then move to `alerts/delivered/`.

An alert is `<id>.json`, written before anything is sent. Attempt n of a channel is `<id>.<channel>.<n>.json`: the
process that creates it sends the message, then saves the outcome in it. The next attempt is due some time after the
last one failed. It is also due if the last one is still open after `LEASE`: its process was probably killed, before or
after the delivery, so the next message is labelled as a possible repeat. Wherever a process is killed, the next attempt
is either free to create or due later, so no alert is lost.

All times are those of the store's clock, which all machines share.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import uuid4

from fmnist_tasks.alerts.channels import MAX_SECONDS, Channel, Outcome, deliver
from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.message import Message
from fmnist_tasks.errors import READ_ERRORS, AccessError, FmnistError, IntegrityError, MissingError
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store, is_ahead, read_clock
from fmnist_tasks.schemas.alerts import Attempt, SavedAlert
from fmnist_tasks.text import make_printable

log = logging.getLogger(__name__)

PENDING, DELIVERED, UNDELIVERABLE = "alerts/pending/", "alerts/delivered/", "alerts/undeliverable/"
LIFETIME = timedelta(days=7)  # then an undelivered alert is given up
# Longer than a delivery and the requests to the store before and after it.
LEASE = 5 * timedelta(seconds=MAX_SECONDS) + timedelta(minutes=5)
_RETRY_DELAYS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))  # then hourly

# Channels that were found recently: if a look-up fails, Airflow reports that the connection does not exist.
_CHANNELS = "alerts/channels/"
_MAX_NAME_BYTES = 1 << 10  # of a channel
_CHANNEL_LIFETIME = timedelta(days=1)
_CHANNEL_REFRESH = timedelta(hours=1)


def read_time(store: Store) -> datetime:
    """Return the time (UTC) that decides when alerts are sent, retried and given up."""
    return read_clock(store)


def enqueue(store: Store, alert_id: str, alert: SavedAlert) -> bool:
    """Save an alert for delivery; False, without writing, if it was saved before, delivered or not.

    False is also possible if this call saved it and the response was lost; the alert is in the store in any case.
    """
    if is_closed(store, alert_id):
        return False
    return store.put_if_absent(f"{PENDING}{alert_id}.json", seal(alert.to_json()))


def is_known(store: Store, alert_id: str) -> bool:
    """Whether the alert was ever saved, delivered or not."""
    return store.stat(f"{PENDING}{alert_id}.json") is not None or is_closed(store, alert_id)


def is_closed(store: Store, alert_id: str) -> bool:
    """Whether the alert was delivered or given up."""
    return any(store.stat(f"{prefix}{alert_id}.json") for prefix in (DELIVERED, UNDELIVERABLE))


@dataclass
class Flush:
    """One pass over the pending alerts."""

    store: Store
    channels: list[Channel]
    faults: list[str]
    render: Callable[[str, SavedAlert, bool], Message]  # from an alert's ID, the alert, and whether it is a repeat
    report: Callable[[Alert], str]  # saves an alert about an undeliverable one, and returns its ID
    max_seconds: float  # after which no delivery starts
    _failed: set[str] = field(default_factory=set)  # channels that have failed in this pass and are skipped

    def __post_init__(self) -> None:
        self._started, self._start_time = time.monotonic(), read_time(self.store)
        self.faults = [*self.faults, *self._find_missing()]

    def run(self, pending: dict[str, list[str]]) -> None:
        """Deliver the alerts from `find_pending` that are due; raises what the store raises."""
        # Alerts with the most attempts come last: one that no channel accepts must not delay the others.
        for alert_id in sorted(pending, key=lambda alert_id: len(pending[alert_id])):
            next_id: str | None = alert_id
            while next_id:  # then the report about it, if any
                next_id = self._advance_safely(next_id, pending.get(next_id, []))

    def _read_now(self) -> datetime:
        return self._start_time + timedelta(seconds=time.monotonic() - self._started)

    def _advance_safely(self, alert_id: str, keys: list[str]) -> str | None:
        try:
            return self._advance(alert_id, keys)
        except MissingError:
            log.debug("alert %s was closed by another process in the meantime", alert_id)
        except (IntegrityError, AccessError) as error:
            return self._set_aside(alert_id, error)
        return None

    def _set_aside(self, alert_id: str, error: Exception) -> str:
        """Move an unreadable alert out of the way if that is possible; return the ID of the alert that reports it."""
        key = f"{UNDELIVERABLE}{alert_id}.damaged"
        try:
            stat = self.store.stat(f"{PENDING}{alert_id}.json")
            has_moved = stat is not None and self.store.remove_if_unchanged(stat, key)
        except (IntegrityError, AccessError) as second:
            log.error("%s", second)
            has_moved = False
        place = f"It is now at {self.store.location(key)}" if has_moved else "It cannot be moved either; delete it"
        text = f"A pending alert cannot be read: {error}. {place}"
        log.error("%s", text)
        report_id = self.report(Alert("alert undeliverable", None, text, "", identity=alert_id))
        if has_moved:
            clean_up(self.store, alert_id)
        return report_id

    def _find_missing(self) -> list[str]:
        """Return a fault for each channel that was found within the last day and is missing now; note those found."""
        now = self._start_time
        last_found = {stat.key.removeprefix(_CHANNELS): stat.modified for stat in self.store.list(_CHANNELS)}
        for channel in self.channels:
            if channel.id not in last_found or now - last_found[channel.id] > _CHANNEL_REFRESH:
                self.store.put(f"{_CHANNELS}{channel.id}", f"{channel.name}\n".encode())
        missing = last_found.keys() - {channel.id for channel in self.channels}
        return [
            f"the channel {self._read_name(channel_id)} has disappeared within the last day; check its connection"
            for channel_id in sorted(missing)
            if now - last_found[channel_id] < _CHANNEL_LIFETIME
        ]

    def _read_name(self, channel_id: str) -> str:
        try:
            name = self.store.get(_CHANNELS + channel_id, _MAX_NAME_BYTES).decode(errors="replace")
        except READ_ERRORS as error:
            log.error("the name of a channel cannot be read: %s", error)
            return channel_id
        return make_printable(name)

    def _advance(self, alert_id: str, keys: list[str]) -> str | None:
        """Make the attempts that are due; return the ID of the alert that reports this one, if it was given up."""
        if is_closed(self.store, alert_id):
            clean_up(self.store, alert_id)
            return None
        alert = self._read(alert_id)
        attempts = {channel.id: self._attempt(channel, alert_id, alert, keys) for channel in self.channels}
        if self.channels and not self.faults and all(last and last.status == "delivered" for last in attempts.values()):
            self._close(DELIVERED, alert_id, alert)
            return None
        return self._give_up(alert_id, alert, attempts)

    def _read(self, alert_id: str) -> SavedAlert:
        """Return the alert; a time in the future, from a wrong clock, is replaced by the current time."""
        key, now = f"{PENDING}{alert_id}.json", self._read_now()
        alert = SavedAlert.parse(read_document(self.store, key), key)
        if is_ahead(datetime.fromisoformat(alert.created), now):
            alert = alert.model_copy(update={"created": now.isoformat()})
            self.store.put(key, seal(alert.to_json()))
        return alert

    def _attempt(self, channel: Channel, alert_id: str, alert: SavedAlert, keys: list[str]) -> Attempt | None:
        """Make an attempt of the channel if one is due; return the latest attempt, or None before the first."""
        prefix = f"{PENDING}{alert_id}.{channel.id}."
        last = _read_last(self.store, prefix, keys)
        now = self._read_now()
        has_expired = time.monotonic() - self._started > self.max_seconds
        if has_expired or channel.id in self._failed or not _is_next_due(last, now):
            return last
        attempt = Attempt(
            number=last.number + 1 if last else 1,
            status="open",
            time=now.isoformat(),
            writer=uuid4().hex,
            repeated=last.may_have_arrived if last else False,
        )
        key = f"{prefix}{attempt.number:06d}.json"
        if not self._claim(key, attempt):
            return attempt  # of another process
        if is_closed(self.store, alert_id):  # and cleaned up in the meantime, which freed the number
            clean_up(self.store, alert_id)
            return attempt
        outcome = deliver(channel, self.render(alert_id, alert, attempt.repeated))
        if outcome.status != "accepted":
            self._failed.add(channel.id)
        return self._save_outcome(key, attempt, outcome)

    def _claim(self, key: str, attempt: Attempt) -> bool:
        """Whether this process may send: it created the attempt, even if the response was lost."""
        if self.store.put_if_absent(key, seal(attempt.to_json())):
            return True
        return Attempt.parse(read_document(self.store, key), key).writer == attempt.writer

    def _save_outcome(self, key: str, attempt: Attempt, outcome: Outcome) -> Attempt:
        status = "delivered" if outcome.status == "accepted" else "failed"
        changes = {"status": status, "reason": outcome.reason, "unsure": outcome.status == "unsure"}
        ended = attempt.model_copy(update=changes)
        self.store.put(key, seal(ended.to_json()))
        return ended

    def _give_up(self, alert_id: str, alert: SavedAlert, attempts: dict[str, Attempt | None]) -> str | None:
        """Close an alert that is too old, after an attempt by each channel; return the ID of the alert about it."""
        now = self._read_now()
        if now - datetime.fromisoformat(alert.created) < LIFETIME:
            return None
        reasons = []
        for channel in self.channels:
            last = attempts[channel.id]
            if last is None or (last.status == "open" and not _is_next_due(last, now)):
                return None
            if last.status != "delivered":
                reasons.append(f"{channel.name}: {last.reason or 'its process was killed'}")
        reasons = reasons + self.faults or ["no channel was configured"]
        log.error(
            "ALERT undeliverable for %s days, given up: %s in %s: %s (%s)",
            LIFETIME.days,
            alert.event,
            alert.run_id or alert.dag_id or "no run",
            alert.text,
            "; ".join(reasons),
        )
        report_id = self._report_undeliverable(alert_id, alert, reasons) if self.channels else None
        self._close(UNDELIVERABLE, alert_id, alert.model_copy(update={"reasons": reasons}))
        return report_id

    def _report_undeliverable(self, alert_id: str, alert: SavedAlert, reasons: list[str]) -> str | None:
        if alert.event == "alert undeliverable":
            return None  # or each report would cause another
        text = (
            f"The alert {alert.event!r} of {alert.created[:16]} could not be delivered for {LIFETIME.days} days: "
            f"{'; '.join(reasons)}. Its text is: {alert.text}. It is now at "
            f"{self.store.location(f'{UNDELIVERABLE}{alert_id}.json')}"
        )
        headline = f"{alert.event} of {alert.created[:10]}: {reasons[0]}"
        return self.report(
            Alert("alert undeliverable", alert.run_id, text, alert.dag_id, headline=headline, identity=alert_id)
        )

    def _close(self, prefix: str, alert_id: str, alert: SavedAlert) -> None:
        self.store.put(f"{prefix}{alert_id}.json", seal(alert.to_json()))
        clean_up(self.store, alert_id)


def find_pending(store: Store) -> dict[str, list[str]]:
    """Return the keys of the attempts of each pending alert by its ID, from one listing."""
    pending: dict[str, list[str]] = defaultdict(list)
    for stat in store.list(PENDING):
        alert_id, _, attempt = stat.key.removeprefix(PENDING).removesuffix(".json").partition(".")
        pending[alert_id] += [stat.key] if attempt else []
    return dict(pending)


def clean_up(store: Store, alert_id: str) -> None:
    """Remove the pending objects of a closed alert; without the right to, leave it to another process."""
    try:
        for stat in list(store.list(f"{PENDING}{alert_id}.")):
            store.delete(stat.key)
    except FmnistError as error:
        log.info("alert %s is closed, and will be cleaned up later: %s", alert_id, error)


def _is_next_due(last: Attempt | None, now: datetime) -> bool:
    """Whether a channel may make another attempt after its last one."""
    if last is None or last.status == "delivered":
        return last is None
    started = datetime.fromisoformat(last.time)
    if is_ahead(started, now):
        return True
    delay = LEASE if last.status == "open" else _RETRY_DELAYS[min(last.number, len(_RETRY_DELAYS)) - 1]
    return now - started > delay


def _read_last(store: Store, prefix: str, keys: list[str]) -> Attempt | None:
    """Return the latest attempt; one with a damaged document counts as open, since it may have delivered."""
    last = max((key for key in keys if key.startswith(prefix)), default=None)
    if last is None:
        return None
    try:
        return Attempt.parse(read_document(store, last), last)
    except IntegrityError as error:
        log.error("a delivery attempt cannot be read and counts as interrupted: %s", error)
    if (stat := store.stat(last)) is None:
        return None
    number = last.removeprefix(prefix).removesuffix(".json")
    return Attempt(number=int(number) if number.isdecimal() else 0, status="open", time=stat.modified.isoformat())
