"""A lock of this machine: training tasks run one after the other, since each uses all cores."""

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
def hold_machine_lock(lock: Path) -> Iterator[None]:
    """Hold a lock that only one process of this machine can hold; it is released when the process ends or dies.

    The wait does not count towards the task's time limit.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting until another process of this machine releases the lock (%s)", lock)
            with _pause_task_timer():
                fcntl.flock(file, fcntl.LOCK_EX)
            log.info("the other process has released the lock (%s)", lock)
        yield


@contextmanager
def _pause_task_timer() -> Iterator[None]:
    """Pause the timer with which Airflow ends a task at its `execution_timeout`."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
