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

import psutil

_GRACE = 60  # seconds in which an interrupted command may end by itself: tests stop their services
_PATIENCE = 2  # seconds in which what it left may
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_contained(command: list[str]) -> int:
    """Run the command; its exit code, or 130 if it was interrupted."""
    _set_option(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    _set_option(_PR_SET_PDEATHSIG, signal.SIGTERM)  # it ends with its parent
    began = time.monotonic()
    # Signals wait until they are asked for, so that none arrives between the end of the command and the notice of it.
    optional = {number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) != signal.SIG_IGN}
    interrupts = {signal.SIGINT, signal.SIGTERM, *optional}
    awaited = interrupts | {signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in the background of a script, and then by the command
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored by default, which some systems do while it is blocked

    def prepare_command() -> None:
        _set_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)

    process = subprocess.Popen(command, preexec_fn=prepare_command)
    interrupted = False
    ended = 0
    while ended != process.pid:
        number = signal.sigwait(awaited)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(-1, os.WNOHANG)
            while ended not in {0, process.pid}:  # an orphan that ended would stay as a zombie
                ended, status = os.waitpid(-1, os.WNOHANG)
            continue
        with suppress(PermissionError):
            if interrupted or number == signal.SIGALRM:  # whoever asks twice does not want to wait
                os.kill(process.pid, signal.SIGKILL)
            elif number != signal.SIGINT:  # Ctrl-C has reached the command as well
                os.kill(process.pid, signal.SIGINT)
        interrupted = True
        signal.alarm(_GRACE)
    signal.alarm(0)
    _end_descendants()
    interrupted = interrupted or bool(interrupts & signal.sigpending())
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = os.cpu_count() or 1
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    seconds = time.monotonic() - began
    used = (usage.ru_utime + usage.ru_stime) / seconds / cores
    print(f"{' '.join(command[:3])} …: {seconds:.0f} s, {used:.0%} of {cores} cores used", file=sys.stderr)
    return 130 if interrupted else os.waitstatus_to_exitcode(status)


def _set_option(option: int, value: int) -> None:
    """Set an option of this process that only Linux has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_descendants() -> None:
    """Terminate all descendants of this process, and kill those that stay. Each may hand over others as it ends."""
    told: set[psutil.Process] = set()
    forbidden: set[psutil.Process] = set()  # those of another user
    limit = time.monotonic() + _PATIENCE
    while left := [child for child in psutil.Process().children(recursive=True) if child not in forbidden]:
        for process in left:
            try:
                if time.monotonic() > limit:
                    process.kill()
                elif process not in told:
                    process.terminate()
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied:
                forbidden.add(process)
        told.update(left)
        psutil.wait_procs(left, timeout=0.2)
    _, alive = psutil.wait_procs(forbidden, timeout=0)
    if alive:
        numbers = ", ".join(str(process.pid) for process in alive)
        print(f"still running, as only another user may end them: {numbers}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_contained(sys.argv[1:]))
