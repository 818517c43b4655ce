"""A process that acquires a machine lock and releases it: `python -m tests.support.lock_user LOCK LOG NUMBER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fmnist_tasks.machine_lock import hold_machine_lock


def use_lock(lock: Path, log: Path, number: str) -> None:
    """Hold the lock for a moment, and log when this process acquires and releases it."""
    with hold_machine_lock(lock), log.open("a") as file:
        file.write(f"{number} in\n")
        file.flush()
        time.sleep(0.05)  # long enough for another process to acquire the lock, if it could
        file.write(f"{number} out\n")


if __name__ == "__main__":
    use_lock(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
