"""Run one step of a run and be killed (SIGKILL) at its n-th write to the store: `killer.py STEP N`.

Odd moments are before the bytes are in place, even ones after.
"""

from __future__ import annotations

import os
import signal
import sys

from made import RUN

from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import run_again

step, fatal = sys.argv[1], int(sys.argv[2])
moments = 0


def mortal(write):
    def writing(self, key, data):
        for before in (True, False):
            global moments
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
