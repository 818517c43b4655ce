from __future__ import annotations

import fcntl
import signal
from pathlib import Path
from types import FrameType

import pytest

from fmnist_tasks import turns
from fmnist_tasks.turns import one_at_a_time


def test_waiting_for_a_turn_does_not_use_up_the_time_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, flock, left = tmp_path / "lock", fcntl.flock, []
    holder = lock.open("w")

    def watch(file: object, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:  # the call that waits
            left.append(signal.getitimer(signal.ITIMER_REAL)[0])
            holder.close()
        flock(file, operation)  # type: ignore[arg-type]

    def expire(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the time is over")

    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 1000)  # as Airflow does
    try:
        flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(turns.fcntl, "flock", watch)
        with one_at_a_time(lock):
            inside = signal.getitimer(signal.ITIMER_REAL)[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert left == [0]
    assert 0 < inside <= 1000
