from __future__ import annotations

import fcntl
import signal
from pathlib import Path
from types import FrameType

import pytest

from fmnist_tasks import machine_lock
from fmnist_tasks.machine_lock import hold_machine_lock


def test_waiting_for_the_lock_does_not_count_towards_the_time_limit_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, flock, timers_while_waiting = tmp_path / "lock", fcntl.flock, []
    holder = lock.open("w")

    def watch(file: object, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:  # the call that waits
            timers_while_waiting.append(signal.getitimer(signal.ITIMER_REAL)[0])
            holder.close()
        flock(file, operation)  # type: ignore[arg-type]

    def expire(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the time limit is exceeded")

    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 1000)  # as Airflow does
    try:
        flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(machine_lock.fcntl, "flock", watch)
        with hold_machine_lock(lock):
            timer = signal.getitimer(signal.ITIMER_REAL)[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert timers_while_waiting == [0]
    assert 0 < timer <= 1000
