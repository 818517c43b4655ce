"""Run a command and stop everything that it started: `python -m tests.support.contain COMMAND…`.

However the command ends, all its descendants are stopped, including daemons in sessions of their own and orphans. The
last line is the run time and CPU use.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

_GRACE = 60  # seconds in which an interrupted command may end by itself: tests stop their services
_PATIENCE = 2  # seconds in which what it left may
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_contained(command: list[str]) -> int:
    """Run the command; its exit code, or 130 if it was interrupted."""
    if sys.platform == "linux":  # orphans become children of this process; this one ends with its parent
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    began = time.monotonic()
    interrupted = False

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted or number == signal.SIGALRM:  # whoever asks twice does not want to wait
            os.kill(process.pid, signal.SIGKILL)
        elif number != signal.SIGINT:  # Ctrl-C has reached the command as well
            os.kill(process.pid, signal.SIGINT)
        interrupted = True
        signal.alarm(_GRACE)

    process = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupt)
    ended = 0
    while ended != process.pid:  # an orphan that ended would stay as a zombie
        ended, status = os.waitpid(-1, 0)
    signal.alarm(0)
    _end_descendants()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, cores = time.monotonic() - began, len(os.sched_getaffinity(0))
    used = (usage.ru_utime + usage.ru_stime) / seconds / cores
    print(f"{' '.join(command[:3])} …: {seconds:.0f} s, {used:.0%} of {cores} cores used", file=sys.stderr)
    return 130 if interrupted else os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    """Terminate all descendants of this process, and kill those that stay. Each may hand over others as it ends."""
    told: set[psutil.Process] = set()
    limit = time.monotonic() + _PATIENCE
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                if time.monotonic() > limit:
                    process.kill()
                elif process not in told:
                    process.terminate()
        told.update(left)
        psutil.wait_procs(left, timeout=0.2)


if __name__ == "__main__":
    sys.exit(run_contained(sys.argv[1:]))
