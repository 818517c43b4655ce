"""Mutual exclusion of pruning and of work that relies on stored objects: steps and rollbacks.

A prune writes the marker `pruning.json`, then looks for markers of work. A step or a rollback writes a marker below
`working/`, then looks for that of a prune. So whichever comes second sees the other one, and stops. The marker of a
killed process expires.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

from fmnist_tasks.errors import ConflictError, FmnistError, MissingError, StoreError
from fmnist_tasks.registry.store import Store, is_ahead, read_clock
from fmnist_tasks.settings import TASK_LIMIT

log = logging.getLogger(__name__)

KEY = "pruning.json"
_WORKING = "working/"
LIFETIME = timedelta(hours=1)  # by the store's clock; an older marker is that of a killed prune
TIME_LIMIT = timedelta(minutes=45)  # by this machine's clock; then a prune stops
_WORK_LIFETIME = TASK_LIMIT + timedelta(hours=1)  # an older marker is that of a killed process


@contextmanager
def forbid_work(store: Store) -> Iterator[Callable[[], None]]:
    """Prevent steps and rollbacks from starting within the context.

    Yields a function to call before each deletion; it raises :class:`ConflictError` if the marker is no longer this
    prune's, or expires soon. Raises :class:`ConflictError` if work or another prune is in progress.
    """
    if time_left := _compute_time_left(store):
        raise ConflictError(
            f"another prune is in progress ({store.location(KEY)}); if it was killed, prune again in "
            f"{_count_minutes(time_left)} minutes"
        )
    start = _read_seconds()
    marker = json.dumps({"writer": uuid4().hex}).encode()
    store.put(KEY, marker)

    def check() -> None:
        if _read_marker(store) != marker:
            raise ConflictError("another prune has started, so this one stops; run one at a time")
        if _read_seconds() - start > TIME_LIMIT.total_seconds():
            raise ConflictError(
                f"the prune stops after its time limit of {_count_minutes(TIME_LIMIT)} minutes; prune again"
            )

    try:
        _refuse_while_working(store)
        yield check
    finally:
        if _read_marker(store) == marker:
            store.delete(KEY)


@contextmanager
def forbid_pruning(store: Store, work: str) -> Iterator[None]:
    """Prevent prunes from starting within the context; `work` describes the work to users.

    Raises :class:`StoreError` while a prune is in progress, since it may delete objects that the work relies on.
    """
    marker = f"{_WORKING}{uuid4().hex}.txt"
    store.put(marker, work.encode())
    try:
        _refuse_while_pruning(store)
        yield
    finally:
        try:
            store.delete(marker)
        except FmnistError as error:  # the work itself has succeeded
            log.warning(
                "%s has ended, but its marker %s stays and blocks pruning until it expires: %s", work, marker, error
            )


def _refuse_while_working(store: Store) -> None:
    now = read_clock(store)
    for stat in store.list(_WORKING):
        if now - stat.modified > _WORK_LIFETIME or is_ahead(stat.modified, now):
            store.delete(stat.key)
            continue
        try:
            work = store.get(stat.key).decode(errors="replace")
        except MissingError:
            continue
        raise ConflictError(
            f"{work} is in progress, so nothing is deleted; prune when it has ended. If it was killed, prune after "
            f"{stat.modified + _WORK_LIFETIME:%Y-%m-%d %H:%M} UTC, or delete {store.location(stat.key)}"
        )


def _refuse_while_pruning(store: Store) -> None:
    if time_left := _compute_time_left(store):
        raise StoreError(
            "`fmnist prune` is deleting old objects, and could delete some that this work needs; retry when it has "
            f"ended, or in {_count_minutes(time_left)} minutes, when {store.location(KEY)} expires"
        )


def _compute_time_left(store: Store) -> timedelta | None:
    """Return the time until the marker expires; None without a valid marker."""
    stat = store.stat(KEY)
    if stat is None:
        return None
    now = read_clock(store)
    time_left = LIFETIME - (now - stat.modified)
    return time_left if time_left > timedelta(0) and not is_ahead(stat.modified, now) else None


def _count_minutes(time: timedelta) -> int:
    return -(-time // timedelta(minutes=1))


def _read_marker(store: Store) -> bytes:
    try:
        return store.get(KEY)
    except MissingError:
        return b""


def _read_seconds() -> float:
    """Return a monotonic time in seconds, which includes the machine's sleep on systems that count it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
