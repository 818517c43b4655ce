"""A step of a run that is killed (SIGKILL) at its n-th write to the store."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import TypeVar
from unittest.mock import patch

from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import run_again
from tests.support.synthetic import RUN

R = TypeVar("R")


def run_until_killed(step: str, fatal: int) -> None:
    """Run the step until that moment: odd ones are before the bytes of a write are in place, even ones after."""
    moments = itertools.count(1)

    def make_mortal(write: Callable[[FolderStore, str, bytes], R]) -> Callable[[FolderStore, str, bytes], R]:
        def write_or_die(self: FolderStore, key: str, data: bytes) -> R:
            if next(moments) == fatal:
                (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
                (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(self, key, data)
            if next(moments) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return write_or_die

    with (
        patch.object(FolderStore, "put", make_mortal(FolderStore.put)),
        patch.object(FolderStore, "put_if_absent", make_mortal(FolderStore.put_if_absent)),
    ):
        run_again(step, RUN)
