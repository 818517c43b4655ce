"""One after the other on one machine: each training uses all its cores, and two would be in each other's way."""

from __future__ import annotations

import fcntl
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process of this machine is inside; a process that dies is outside at once.

    The time of waiting does not count towards a time limit of the task.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process of this machine (%s)", lock)
            with _stopped_timer():
                fcntl.flock(file, fcntl.LOCK_EX)
            log.info("the wait is over")
        yield


@contextmanager
def _stopped_timer() -> Iterator[None]:
    """Stop the timer by which Airflow ends a task at its `execution_timeout`; it goes on with what was left."""
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
