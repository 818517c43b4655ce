"""Pruning and whatever relies on what lies in the store, a step or a rollback, exclude each other.

Pruning sets the flag `pruning.json`, then looks for work and runs under way. A step or a rollback leaves a mark below
`working/`, then looks for the flag. So whichever comes second sees the other one, and gives way. What a killed process
leaves of either expires.
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
LIFETIME = timedelta(hours=1)  # by the store's clock, after which a flag is that of a prune that was killed
TIME_LIMIT = timedelta(minutes=45)  # by this machine's, after which pruning stops by itself
_WORK_LIFETIME = TASK_LIMIT + timedelta(hours=1)  # after which a mark is that of a process that was killed


@contextmanager
def forbid_work(store: Store) -> Iterator[Callable[[], None]]:
    """Keep steps and rollbacks from beginning while this is open.

    Gives a function to call before each deletion; it raises :class:`ConflictError` if the flag is no longer this one,
    or will expire soon. Raises :class:`ConflictError` itself while one of them is under way, or another prune.
    """
    if left := _find_time_left(store):
        raise ConflictError(
            f"{store.location(KEY)} says that another prune is under way; if that one was killed, prune again in "
            f"{_count_minutes(left)} minutes"
        )
    began = _read_seconds()
    own = json.dumps({"writer": uuid4().hex}).encode()
    store.put(KEY, own)

    def check() -> None:
        if _read_flag(store) != own:
            raise ConflictError("another prune has begun, this one stops; run one at a time")
        if _read_seconds() - began > TIME_LIMIT.total_seconds():
            raise ConflictError(f"pruning has taken {_count_minutes(TIME_LIMIT)} minutes and stops; prune again")

    try:
        _refuse_while_working(store)
        yield check
    finally:
        if _read_flag(store) == own:
            store.delete(KEY)


@contextmanager
def forbid_pruning(store: Store, work: str) -> Iterator[None]:
    """Keep pruning from beginning while this is open; `work` says for people what is under way.

    Raises :class:`StoreError` while a prune is under way, since it may delete what the work relies on.
    """
    mark = f"{_WORKING}{uuid4().hex}.txt"
    store.put(mark, work.encode())
    try:
        _refuse_while_pruning(store)
        yield
    finally:
        try:
            store.delete(mark)
        except FmnistError as error:  # what has been done is done
            log.warning("%s has ended, and pruning is refused until %s expires: %s", work, mark, error)


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
            f"{work} is under way, nothing is deleted; prune when it has ended. If it was killed, prune after "
            f"{stat.modified + _WORK_LIFETIME:%Y-%m-%d %H:%M} UTC, or delete {store.location(stat.key)}"
        )


def _refuse_while_pruning(store: Store) -> None:
    if left := _find_time_left(store):
        raise StoreError(
            "`fmnist prune` is deleting old objects, and might delete what is needed here; try again when it has "
            f"ended, at the latest in {_count_minutes(left)} minutes, when {store.location(KEY)} expires"
        )


def _find_time_left(store: Store) -> timedelta | None:
    """Until the flag expires; None if there is none, or it has expired."""
    stat = store.stat(KEY)
    if stat is None:
        return None
    now = read_clock(store)
    left = LIFETIME - (now - stat.modified)
    return left if left > timedelta(0) and not is_ahead(stat.modified, now) else None


def _count_minutes(time: timedelta) -> int:
    return -(-time // timedelta(minutes=1))


def _read_flag(store: Store) -> bytes:
    try:
        return store.get(KEY)
    except MissingError:
        return b""


def _read_seconds() -> float:
    """Seconds that pass while this machine sleeps too, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
