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
from typing import Any
from uuid import uuid4

from fmnist_tasks.alerts.channels import MAX_SECONDS, Channel, Outcome, deliver
from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.message import Message
from fmnist_tasks.errors import FmnistError, IntegrityError, MissingError
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store, is_ahead, read_clock

log = logging.getLogger(__name__)

Document = dict[str, Any]

PENDING, DELIVERED, UNDELIVERABLE = "alerts/pending/", "alerts/delivered/", "alerts/undeliverable/"
LIFETIME = timedelta(days=7)  # then an undelivered alert is given up
# Longer than a delivery and the requests to the store before and after it.
LEASE = 5 * timedelta(seconds=MAX_SECONDS) + timedelta(minutes=5)
_RETRY_DELAYS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))  # then hourly

# Channels that were found recently: if a look-up fails, Airflow reports that the connection does not exist.
_CHANNELS = "alerts/channels/"
_CHANNEL_LIFETIME = timedelta(days=1)
_CHANNEL_REFRESH = timedelta(hours=1)


@dataclass
class Attempt:
    """The latest attempt of a channel to deliver an alert."""

    number: int = 0  # 0: no attempt yet
    status: str = "none"  # none, open, failed or delivered
    time: str = ""
    writer: str = ""
    reason: str = ""
    repeated: bool = False  # whether its message was labelled as a possible repeat
    unsure: bool = False  # whether a failed attempt may have been delivered

    def is_due(self, now: datetime) -> bool:
        """Whether the next attempt is allowed."""
        if self.status in {"none", "delivered"}:
            return self.status == "none"
        started = datetime.fromisoformat(self.time)
        if is_ahead(started, now):
            return True
        delay = LEASE if self.status == "open" else _RETRY_DELAYS[min(self.number, len(_RETRY_DELAYS)) - 1]
        return now - started > delay

    @property
    def may_have_arrived(self) -> bool:
        """Whether this attempt or an earlier one may have been delivered without confirmation."""
        return self.repeated or self.unsure or self.status == "open"


def read_time(store: Store) -> datetime:
    """Return the time (UTC) that decides when alerts are sent, retried and given up."""
    return read_clock(store)


def enqueue(store: Store, alert_id: str, document: Document) -> bool:
    """Save an alert for delivery; False, without writing, if it was saved before, delivered or not.

    False is also possible if this call saved it and the response was lost; the alert is in the store in any case.
    """
    if is_closed(store, alert_id):
        return False
    return store.put_if_absent(f"{PENDING}{alert_id}.json", seal(document))


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
    render: Callable[[str, Document, bool], Message]  # from an alert's ID, its document, and whether it is a repeat
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
        except (IntegrityError, KeyError, TypeError, ValueError) as error:
            return self._set_aside(alert_id, error)
        return None

    def _set_aside(self, alert_id: str, error: Exception) -> str:
        """Move an unreadable alert out of the way; return the ID of the alert that reports it."""
        key = f"{UNDELIVERABLE}{alert_id}.damaged"
        text = f"A pending alert cannot be read: {error}. It is now at {self.store.location(key)}"
        log.error("%s", text)
        report_id = self.report(Alert("alert undeliverable", None, text, "", identity=alert_id))
        self.store.put(key, self.store.get(f"{PENDING}{alert_id}.json"))
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
            f"the channel {self.store.get(_CHANNELS + channel_id).decode().strip()} has disappeared within the last "
            "day; check its connection"
            for channel_id in sorted(missing)
            if now - last_found[channel_id] < _CHANNEL_LIFETIME
        ]

    def _advance(self, alert_id: str, keys: list[str]) -> str | None:
        """Make the attempts that are due; return the ID of the alert that reports this one, if it was given up."""
        if is_closed(self.store, alert_id):
            clean_up(self.store, alert_id)
            return None
        document = self._read(alert_id)
        attempts = {channel.id: self._attempt(channel, alert_id, document, keys) for channel in self.channels}
        if self.channels and not self.faults and all(attempt.status == "delivered" for attempt in attempts.values()):
            self._close(DELIVERED, alert_id, document, [])
            return None
        return self._give_up(alert_id, document, attempts)

    def _read(self, alert_id: str) -> Document:
        """Return the alert's document; a time in the future, from a wrong clock, is replaced by the current time."""
        key, now = f"{PENDING}{alert_id}.json", self._read_now()
        document = read_document(self.store, key)
        if is_ahead(datetime.fromisoformat(document["created"]), now):
            document["created"] = now.isoformat()
            self.store.put(key, seal(document))
        return document

    def _attempt(self, channel: Channel, alert_id: str, document: Document, keys: list[str]) -> Attempt:
        """Make an attempt of the channel if one is due; return the latest attempt."""
        prefix = f"{PENDING}{alert_id}.{channel.id}."
        last = _read_last(self.store, prefix, keys)
        now = self._read_now()
        has_expired = time.monotonic() - self._started > self.max_seconds
        if has_expired or channel.id in self._failed or not last.is_due(now):
            return last
        attempt = Attempt(
            number=last.number + 1,
            status="open",
            time=now.isoformat(),
            writer=uuid4().hex,
            repeated=last.may_have_arrived,
        )
        key = f"{prefix}{attempt.number:06d}.json"
        if not self._claim(key, attempt):
            return Attempt(last.number + 1, "open", attempt.time)
        if is_closed(self.store, alert_id):  # and cleaned up in the meantime, which freed the number
            clean_up(self.store, alert_id)
            return attempt
        outcome = deliver(channel, self.render(alert_id, document, attempt.repeated))
        self._save_outcome(key, attempt, outcome)
        if outcome.status != "accepted":
            self._failed.add(channel.id)
        return attempt

    def _claim(self, key: str, attempt: Attempt) -> bool:
        """Whether this process may send: it created the attempt, even if the response was lost."""
        if self.store.put_if_absent(key, seal(vars(attempt))):
            return True
        return bool(read_document(self.store, key)["writer"] == attempt.writer)

    def _save_outcome(self, key: str, attempt: Attempt, outcome: Outcome) -> None:
        attempt.status = "delivered" if outcome.status == "accepted" else "failed"
        attempt.reason, attempt.unsure = outcome.reason, outcome.status == "unsure"
        self.store.put(key, seal(vars(attempt)))

    def _give_up(self, alert_id: str, document: Document, attempts: dict[str, Attempt]) -> str | None:
        """Close an alert that is too old, after an attempt by each channel; return the ID of the alert about it."""
        now = self._read_now()
        if now - datetime.fromisoformat(document["created"]) < LIFETIME:
            return None
        names = {channel.id: channel.name for channel in self.channels}
        undelivered = {channel_id: attempt for channel_id, attempt in attempts.items() if attempt.status != "delivered"}
        if any(
            attempt.status == "none" or (attempt.status == "open" and not attempt.is_due(now))
            for attempt in undelivered.values()
        ):
            return None
        reasons = [
            f"{names[channel_id]}: {attempt.reason or 'its process was killed'}"
            for channel_id, attempt in undelivered.items()
        ]
        reasons += self.faults
        if not reasons:
            reasons = ["no channel was configured"]
        log.error(
            "ALERT undeliverable for %s days, given up: %s in %s: %s (%s)",
            LIFETIME.days,
            document["event"],
            document["run_id"] or document["dag_id"] or "no run",
            document["text"],
            "; ".join(reasons),
        )
        report_id = self._report_undeliverable(alert_id, document, reasons) if self.channels else None
        self._close(UNDELIVERABLE, alert_id, document, reasons)
        return report_id

    def _report_undeliverable(self, alert_id: str, document: Document, reasons: list[str]) -> str | None:
        if document["event"] == "alert undeliverable":
            return None  # or each report would cause another
        text = (
            f"The alert {document['event']!r} of {document['created'][:16]} could not be delivered for "
            f"{LIFETIME.days} days: {'; '.join(reasons)}. Its text is: {document['text']}. "
            f"It is now at {self.store.location(f'{UNDELIVERABLE}{alert_id}.json')}"
        )
        headline = f"{document['event']} of {document['created'][:10]}: {reasons[0]}"
        run_id, dag_id = document["run_id"], document["dag_id"]
        return self.report(Alert("alert undeliverable", run_id, text, dag_id, headline=headline, identity=alert_id))

    def _close(self, prefix: str, alert_id: str, document: Document, reasons: list[str]) -> None:
        self.store.put(f"{prefix}{alert_id}.json", seal({**document, "reasons": reasons}))
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


def _read_last(store: Store, prefix: str, keys: list[str]) -> Attempt:
    """Return the latest attempt; one with a damaged document counts as open, since it may have delivered."""
    last = max((key for key in keys if key.startswith(prefix)), default=None)
    if last is None:
        return Attempt()
    try:
        return Attempt(**read_document(store, last))
    except (IntegrityError, TypeError) as error:
        log.error("a delivery attempt cannot be read and counts as interrupted: %s", error)
    if (stat := store.stat(last)) is None:
        return Attempt()
    number = last.removeprefix(prefix).removesuffix(".json")
    return Attempt(int(number) if number.isdecimal() else 0, "open", stat.modified.isoformat())
