"""Run a command, then stop every process that it started: `python -m tests.support.contain COMMAND…`.

It stops all descendants of the command, including orphans and daemons in other sessions, even if the command is killed.
The last line of standard error is the run time and CPU use.
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

_INTERRUPT_SECONDS = 60  # time for an interrupted command to exit: tests stop their services
_TERMINATE_SECONDS = 2  # time for its descendants to exit before they are killed
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_contained(command: list[str]) -> int:
    """Run the command and return its exit code, or 130 if it was interrupted."""
    _set_option(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    _set_option(_PR_SET_PDEATHSIG, signal.SIGTERM)  # this process ends with its parent
    start = time.monotonic()
    # Blocked signals wait for sigwait(). So none arrives between the end of the command and its SIGCHLD.
    optional = {number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) != signal.SIG_IGN}
    interrupts = {signal.SIGINT, signal.SIGTERM, *optional}
    awaited = interrupts | {signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background of a script the command would inherit "ignore"
    signal.signal(signal.SIGCHLD, lambda *_: None)  # some systems discard a blocked signal that is ignored by default

    def prepare_command() -> None:
        _set_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)

    process = subprocess.Popen(command, preexec_fn=prepare_command)
    interrupted = False
    reaped = 0  # process ID of the last child that exited
    while reaped != process.pid:
        number = signal.sigwait(awaited)
        if number == signal.SIGCHLD:
            reaped, status = os.waitpid(-1, os.WNOHANG)
            while reaped not in {0, process.pid}:  # orphans would remain as zombies
                reaped, status = os.waitpid(-1, os.WNOHANG)
            continue
        with suppress(PermissionError):
            if interrupted or number == signal.SIGALRM:  # a second interruption does not wait
                os.kill(process.pid, signal.SIGKILL)
            elif number != signal.SIGINT:  # the terminal sends Ctrl-C to the command as well
                os.kill(process.pid, signal.SIGINT)
        interrupted = True
        signal.alarm(_INTERRUPT_SECONDS)
    signal.alarm(0)
    _stop_descendants()
    interrupted = interrupted or bool(interrupts & signal.sigpending())
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = os.cpu_count() or 1
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    seconds = time.monotonic() - start
    used = (usage.ru_utime + usage.ru_stime) / seconds / cores
    print(f"{' '.join(command[:3])} …: {seconds:.0f} s, {used:.0%} of {cores} cores used", file=sys.stderr)
    return 130 if interrupted else os.waitstatus_to_exitcode(status)


def _set_option(option: int, value: int) -> None:
    """Set a prctl option of this process, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _stop_descendants() -> None:
    """Terminate all descendants of this process, then kill those that remain.

    Lists them again in each round, since a process that exits may leave orphans.
    """
    terminated: set[psutil.Process] = set()
    forbidden: set[psutil.Process] = set()  # processes of another user
    deadline = time.monotonic() + _TERMINATE_SECONDS
    while descendants := [child for child in psutil.Process().children(recursive=True) if child not in forbidden]:
        for process in descendants:
            try:
                if time.monotonic() > deadline:
                    process.kill()
                elif process not in terminated:
                    process.terminate()
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied:
                forbidden.add(process)
        terminated.update(descendants)
        psutil.wait_procs(descendants, timeout=0.2)
    _, alive = psutil.wait_procs(forbidden, timeout=0)
    if alive:
        numbers = ", ".join(str(process.pid) for process in alive)
        print(f"still running, because they belong to another user: {numbers}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_contained(sys.argv[1:]))
