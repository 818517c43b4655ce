"""What tests bring onto a machine is brought by one process at a time: package managers refuse a second one."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from fmnist_tasks.turns import one_at_a_time


def installing() -> AbstractContextManager[None]:
    """Wait until no other test of this machine installs or builds anything."""
    return one_at_a_time(Path(tempfile.gettempdir()) / "fmnist-installing.lock")
