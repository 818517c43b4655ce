"""Alerts that wait in the store until every channel has accepted them: `alerts/pending/`, then `alerts/delivered/`.

An alert is `<id>.json`, written before anything is sent. Attempt n of a channel is `<id>.<channel>.<n>.json`: whoever
creates it sends, then notes in it how that ended. The next one is allowed once the last has failed and some time has
passed, or if the last is still open after `LEASE`: its process was probably killed, nobody knows whether before or
after the delivery, so that the message is then labelled as a possible repeat. A process that was killed at any point
leaves either a free attempt or an open one; neither loses the alert.

All times are those of the store's clock, which is the same for all machines.
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
LIFETIME = timedelta(days=7)  # what is not delivered by then is given up
# Longer than a delivery can take, with the requests to the store before and after it.
LEASE = 5 * timedelta(seconds=MAX_SECONDS) + timedelta(minutes=5)
_BACK_OFF = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))  # then hourly

# Channels that were seen lately. Airflow says of a connection that it could not look up that it does not exist.
_SEEN = "alerts/channels/"
_SEEN_FOR = timedelta(days=1)
_SEEN_AGAIN = timedelta(hours=1)


@dataclass
class Attempt:
    """The latest attempt of a channel to deliver an alert."""

    number: int = 0  # 0: there was none
    status: str = "none"  # none, open, failed or delivered
    time: str = ""
    writer: str = ""
    reason: str = ""
    repeated: bool = False  # whether its message was labelled as a possible repeat
    unsure: bool = False  # whether it may have been delivered although it failed

    def is_due(self, now: datetime) -> bool:
        """Whether the next attempt is allowed."""
        if self.status in {"none", "delivered"}:
            return self.status == "none"
        began = datetime.fromisoformat(self.time)
        if is_ahead(began, now):
            return True
        return now - began > (LEASE if self.status == "open" else _BACK_OFF[min(self.number, len(_BACK_OFF)) - 1])

    @property
    def may_have_arrived(self) -> bool:
        """Whether this attempt or an earlier one may have been delivered without a confirmation."""
        return self.repeated or self.unsure or self.status == "open"


def read_time(store: Store) -> datetime:
    """The time by which alerts are sent, retried and given up (UTC)."""
    return read_clock(store)


def enqueue(store: Store, alert_id: str, document: Document) -> bool:
    """Save an alert to be delivered; False, and nothing written, if it is known already, delivered or not.

    It may be saved by this very call, whose answer was lost: it is in the store in either case.
    """
    if is_closed(store, alert_id):
        return False
    return store.put_if_absent(f"{PENDING}{alert_id}.json", seal(document))


def is_known(store: Store, alert_id: str) -> bool:
    """Whether the alert was saved, delivered or not."""
    return store.stat(f"{PENDING}{alert_id}.json") is not None or is_closed(store, alert_id)


def is_closed(store: Store, alert_id: str) -> bool:
    """Whether the alert was delivered, or given up."""
    return any(store.stat(f"{prefix}{alert_id}.json") for prefix in (DELIVERED, UNDELIVERABLE))


@dataclass
class Flush:
    """One pass over the alerts that wait."""

    store: Store
    channels: list[Channel]
    faults: list[str]
    render: Callable[[str, Document, bool], Message]  # from an alert's id, its document, and whether it is a repeat
    report: Callable[[Alert], str]  # save an alert about one that is not delivered; its id
    seconds: float  # no delivery begins after so many
    _failed: set[str] = field(default_factory=set)  # channels that have failed in this pass: not tried again in it

    def __post_init__(self) -> None:
        self._began, self._clock = time.monotonic(), read_time(self.store)
        self.faults = [*self.faults, *self._find_missing()]

    def run(self, waiting: dict[str, list[str]]) -> None:
        """Deliver what is due of the alerts that `find_pending` has found; raises what the store raises."""
        # The ones that failed most often come last, so that one that no channel takes does not hold up the others.
        for alert_id in sorted(waiting, key=lambda one: len(waiting[one])):
            about: str | None = alert_id
            while about:
                about = self._advance_safely(about, waiting.get(about, []))

    def _now(self) -> datetime:
        return self._clock + timedelta(seconds=time.monotonic() - self._began)

    def _advance_safely(self, alert_id: str, keys: list[str]) -> str | None:
        try:
            return self._advance(alert_id, keys)
        except MissingError:
            log.debug("alert %s was closed by another process meanwhile", alert_id)
        except (IntegrityError, KeyError, TypeError, ValueError) as error:
            return self._set_aside(alert_id, error)
        return None

    def _set_aside(self, alert_id: str, error: Exception) -> str:
        """Move an alert that cannot be read out of the way; the id of the alert that says so."""
        key = f"{UNDELIVERABLE}{alert_id}.damaged"
        text = f"An alert that waited in the store cannot be read: {error}. It is kept at {self.store.location(key)}"
        log.error("%s", text)
        about = self.report(Alert("alert undeliverable", None, text, "", identity=alert_id))
        self.store.put(key, self.store.get(f"{PENDING}{alert_id}.json"))
        clean_up(self.store, alert_id)
        return about

    def _find_missing(self) -> list[str]:
        """What is wrong if a channel that was there within a day is not found; notes those that are."""
        now = self._clock
        seen = {stat.key.removeprefix(_SEEN): stat.modified for stat in self.store.list(_SEEN)}
        for channel in self.channels:
            if channel.id not in seen or now - seen[channel.id] > _SEEN_AGAIN:
                self.store.put(f"{_SEEN}{channel.id}", f"{channel.name}\n".encode())
        missing = seen.keys() - {channel.id for channel in self.channels}
        return [
            f"the channel {self.store.get(_SEEN + one).decode().strip()} was found within the last day and is not now; "
            "look at its connection"
            for one in sorted(missing)
            if now - seen[one] < _SEEN_FOR
        ]

    def _advance(self, alert_id: str, keys: list[str]) -> str | None:
        """Bring one alert as far as it goes now; the id of an alert about it, if it was given up."""
        if is_closed(self.store, alert_id):
            clean_up(self.store, alert_id)
            return None
        document = self._read(alert_id)
        attempts = {channel.id: self._try(channel, alert_id, document, keys) for channel in self.channels}
        if self.channels and not self.faults and all(one.status == "delivered" for one in attempts.values()):
            self._close(DELIVERED, alert_id, document, [])
            return None
        return self._give_up(alert_id, document, attempts)

    def _read(self, alert_id: str) -> Document:
        """The alert's document; if its time lies ahead, it is as old as this look at it."""
        key, now = f"{PENDING}{alert_id}.json", self._now()
        document = read_document(self.store, key)
        if is_ahead(datetime.fromisoformat(document["created"]), now):
            document["created"] = now.isoformat()
            self.store.put(key, seal(document))
        return document

    def _try(self, channel: Channel, alert_id: str, document: Document, keys: list[str]) -> Attempt:
        """The latest attempt of the channel, after a new one if that is due."""
        prefix = f"{PENDING}{alert_id}.{channel.id}."
        last = _read_last(self.store, prefix, keys)
        now = self._now()
        late = time.monotonic() - self._began > self.seconds
        if late or channel.id in self._failed or not last.is_due(now):
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
        if is_closed(self.store, alert_id):  # and cleaned up in between: the number was free once more
            clean_up(self.store, alert_id)
            return attempt
        outcome = deliver(channel, self.render(alert_id, document, attempt.repeated))
        self._note(key, attempt, outcome)
        if outcome.status != "accepted":
            self._failed.add(channel.id)
        return attempt

    def _claim(self, key: str, attempt: Attempt) -> bool:
        """Whether this process may send: it has created the attempt, even if the answer that says so was lost."""
        if self.store.put_if_absent(key, seal(vars(attempt))):
            return True
        return bool(read_document(self.store, key)["writer"] == attempt.writer)

    def _note(self, key: str, attempt: Attempt, outcome: Outcome) -> None:
        attempt.status = "delivered" if outcome.status == "accepted" else "failed"
        attempt.reason, attempt.unsure = outcome.reason, outcome.status == "unsure"
        self.store.put(key, seal(vars(attempt)))

    def _give_up(self, alert_id: str, document: Document, attempts: dict[str, Attempt]) -> str | None:
        """Close an alert that is too old, once each channel has had a chance; the id of the alert that says so."""
        now = self._now()
        if now - datetime.fromisoformat(document["created"]) < LIFETIME:
            return None
        names = {channel.id: channel.name for channel in self.channels}
        open_ones = {one: attempt for one, attempt in attempts.items() if attempt.status != "delivered"}
        if any(
            attempt.status == "none" or (attempt.status == "open" and not attempt.is_due(now))
            for attempt in open_ones.values()
        ):
            return None
        reasons = [f"{names[one]}: {attempt.reason or 'its process was killed'}" for one, attempt in open_ones.items()]
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
        about = self._report_given_up(alert_id, document, reasons) if self.channels else None
        self._close(UNDELIVERABLE, alert_id, document, reasons)
        return about

    def _report_given_up(self, alert_id: str, document: Document, reasons: list[str]) -> str | None:
        if document["event"] == "alert undeliverable":
            return None  # or each would bring forth the next
        text = (
            f"The alert {document['event']!r} of {document['created'][:16]} could not be delivered for "
            f"{LIFETIME.days} days: {'; '.join(reasons)}. It says: {document['text']}. "
            f"It is kept at {self.store.location(f'{UNDELIVERABLE}{alert_id}.json')}"
        )
        headline = f"{document['event']} of {document['created'][:10]}: {reasons[0]}"
        run_id, dag_id = document["run_id"], document["dag_id"]
        return self.report(Alert("alert undeliverable", run_id, text, dag_id, headline=headline, identity=alert_id))

    def _close(self, prefix: str, alert_id: str, document: Document, reasons: list[str]) -> None:
        self.store.put(f"{prefix}{alert_id}.json", seal({**document, "reasons": reasons}))
        clean_up(self.store, alert_id)


def find_pending(store: Store) -> dict[str, list[str]]:
    """By id of each alert that waits: the keys of its attempts, by one listing."""
    waiting: dict[str, list[str]] = defaultdict(list)
    for stat in store.list(PENDING):
        alert_id, _, attempt = stat.key.removeprefix(PENDING).removesuffix(".json").partition(".")
        waiting[alert_id] += [stat.key] if attempt else []
    return dict(waiting)


def clean_up(store: Store, alert_id: str) -> None:
    """Remove what waited of an alert that is closed; whoever may not leaves it to the next one."""
    try:
        for stat in list(store.list(f"{PENDING}{alert_id}.")):
            store.delete(stat.key)
    except FmnistError as error:
        log.info("alert %s is closed, and cleaned up later: %s", alert_id, error)


def _read_last(store: Store, prefix: str, keys: list[str]) -> Attempt:
    """The latest attempt; one whose document is damaged may have delivered, like that of a killed process."""
    last = max((key for key in keys if key.startswith(prefix)), default=None)
    if last is None:
        return Attempt()
    try:
        return Attempt(**read_document(store, last))
    except (IntegrityError, TypeError) as error:
        log.error("an attempt to deliver an alert cannot be read, and counts as interrupted: %s", error)
    if (stat := store.stat(last)) is None:
        return Attempt()
    number = last.removeprefix(prefix).removesuffix(".json")
    return Attempt(int(number) if number.isdecimal() else 0, "open", stat.modified.isoformat())
