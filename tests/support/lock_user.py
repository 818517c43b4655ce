"""A process that waits for a lock and uses it: `python -m tests.support.lock_user LOCK LOG NUMBER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fmnist_tasks.turns import one_at_a_time


def use_lock(lock: Path, log: Path, number: str) -> None:
    """Note in the log when this process comes in, and when it goes out."""
    with one_at_a_time(lock), log.open("a") as file:
        file.write(f"{number} in\n")
        file.flush()
        time.sleep(0.05)  # long enough for another to come in, if it could
        file.write(f"{number} out\n")


if __name__ == "__main__":
    use_lock(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
