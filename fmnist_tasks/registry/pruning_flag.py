"""The flag `pruning.json`: pruning and the beginning of a step exclude each other.

Pruning sets the flag, then looks for runs under way. A step leaves its record, then looks for the flag. So whichever
comes second sees the other one, and gives way. The flag of a prune that was killed expires.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

from fmnist_tasks.errors import ConflictError, MissingError, StoreError
from fmnist_tasks.registry.store import Store, read_clock

KEY = "pruning.json"
LIFETIME = timedelta(hours=1)  # by the store's clock, after which a flag is that of a prune that was killed
TIME_LIMIT = timedelta(minutes=45)  # by this machine's, after which pruning stops by itself


@contextmanager
def forbid_steps(store: Store) -> Iterator[Callable[[], None]]:
    """Keep steps from beginning while this is open.

    Gives a function to call before each deletion; it raises :class:`ConflictError` if the flag is no longer this one,
    or will expire soon. Raises :class:`ConflictError` itself if another prune has set a flag that has not expired.
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
        yield check
    finally:
        if _read_flag(store) == own:
            store.delete(KEY)


def refuse_while_pruning(store: Store) -> None:
    """Raise :class:`StoreError` while a prune may delete what a step that begins now relies on."""
    if left := _find_time_left(store):
        raise StoreError(
            "`fmnist prune` is deleting old objects, and might delete what this step relies on; clear the task when it "
            f"has ended, at the latest in {_count_minutes(left)} minutes, when {store.location(KEY)} expires"
        )


def _find_time_left(store: Store) -> timedelta | None:
    """Until the flag expires; None if there is none, or it has expired."""
    stat = store.stat(KEY)
    if stat is None:
        return None
    left = LIFETIME - (read_clock(store) - stat.modified)
    return left if left > timedelta(0) else None


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
