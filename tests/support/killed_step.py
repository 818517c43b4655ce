"""A step of a run that is killed (SIGKILL) at its n-th write to the store."""

from __future__ import annotations

import os
import signal

from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import run_again
from tests.support.synthetic import RUN


def run_mortal(step: str, fatal: int) -> None:
    """Run the step until that moment: odd ones are before the bytes of a write are in place, even ones after."""
    moments = 0

    def mortal(write):
        def writing(self, key, data):
            nonlocal moments
            for before in (True, False):
                moments += 1
                if moments == fatal:
                    if before:
                        (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
                        (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                if before:
                    done = write(self, key, data)
            return done

        return writing

    FolderStore.put = mortal(FolderStore.put)
    FolderStore.put_if_absent = mortal(FolderStore.put_if_absent)
    run_again(step, RUN)
