"""No process of a test run outlives it, even if the run is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fmnist_tasks.settings import PROJECT

# A service in a new session, whose parent exits at once.
DAEMON = "sleep 1000 & echo $! >{folder}/daemon"
COMMAND = """
setsid sh -c '{daemon}' &
while ! [ -s {folder}/daemon ]; do sleep 0.05; done
echo ready
{last}
"""
CONTAIN = (sys.executable, "-m", "tests.support.contain")
# Simulates a daemon of another user, which it may not signal.
CONTAIN_WITHOUT_PERMISSION = """
import pathlib, psutil, sys
from tests.support.contain import run_contained

def refuse(end):
    def end_or_refuse(process):
        if process.pid == int(pathlib.Path(sys.argv[1], "daemon").read_text()):
            raise psutil.AccessDenied(process.pid)
        end(process)
    return end_or_refuse

psutil.Process.terminate = refuse(psutil.Process.terminate)
psutil.Process.kill = refuse(psutil.Process.kill)
sys.exit(run_contained(sys.argv[2:]))
"""


def format_command(folder: Path, last: str, daemon: str = DAEMON) -> list[str]:
    return ["sh", "-c", COMMAND.format(folder=folder, last=last, daemon=daemon.format(folder=folder))]


def reset_signals() -> None:
    """Restore signal handlers, since the tests may run under `nohup` or in the background of a script."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def start(*command: str) -> subprocess.Popen[str]:
    """Start a command and wait until it prints "ready"."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=reset_signals,
    )
    assert read_line(process) == "ready"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def list_surviving_daemons(folder: Path) -> list[int]:
    """Process IDs, from the files in the folder, of daemons that still run."""
    return [int(file.read_text()) for file in folder.iterdir() if psutil.pid_exists(int(file.read_text()))]


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    """Wait for the process to exit, check that no daemon survived, and return its standard error."""
    process.wait(timeout=30)
    assert list_surviving_daemons(folder) == []
    return process.communicate()[1]


@pytest.mark.parametrize(("last", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -signal.SIGKILL)])
def test_a_command_that_exits_leaves_no_process(tmp_path: Path, last: str, code: int) -> None:
    process = start(*CONTAIN, *format_command(tmp_path, last))
    assert " cores used" in finish(process, tmp_path)
    assert process.returncode == code % 256


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_an_interrupted_command_leaves_no_process(tmp_path: Path, number: int) -> None:
    process = start(*CONTAIN, *format_command(tmp_path, "exec sleep 1002"))
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    finish(process, tmp_path)
    assert process.returncode == 130


def test_an_interruption_during_cleanup_changes_only_the_exit_code(tmp_path: Path) -> None:
    trap = r'trap "echo terminating; trap \"\" TERM; exec sleep 1000" TERM; echo $$ >{folder}/daemon; '
    process = start(*CONTAIN, *format_command(tmp_path, "exit 0", trap + "while true; do sleep 1000 & wait; done"))
    assert read_line(process) == "terminating"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    assert " cores used" in finish(process, tmp_path)
    assert process.returncode == 130


def test_a_process_of_another_user_is_reported_and_the_others_are_stopped(tmp_path: Path) -> None:
    two_daemons = "sleep 1000 >/dev/null 2>&1 & echo $! >{folder}/daemon; sleep 1000 & echo $! >{folder}/other"
    command = format_command(tmp_path, f"while ! [ -s {tmp_path}/other ]; do sleep 0.05; done", two_daemons)
    process = start(sys.executable, "-c", CONTAIN_WITHOUT_PERMISSION, str(tmp_path), *command)
    daemon = int((tmp_path / "daemon").read_text())
    try:
        process.wait(timeout=30)
        assert list_surviving_daemons(tmp_path) == [daemon]
        report = process.communicate()[1].splitlines()[0]
        assert report == f"still running, because they belong to another user: {daemon}"
        assert process.returncode == 0
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_command_ends_when_its_container_is_killed() -> None:
    process = start(*CONTAIN, "sh", "-c", "echo ready; exec sleep 1002")
    process.kill()
    process.communicate(timeout=30)  # returns only once the command has closed the pipes


def test_a_background_command_stops_on_sigterm(tmp_path: Path) -> None:
    background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    process = start(*background, *CONTAIN, *format_command(tmp_path, "exec sleep 1002"))
    process.terminate()
    finish(process, tmp_path)
    assert process.returncode == 130


def test_a_command_under_nohup_continues_when_its_terminal_closes(tmp_path: Path) -> None:
    process = start("nohup", *CONTAIN, *format_command(tmp_path, "read go; exit 3"))
    process.send_signal(signal.SIGHUP)
    assert process.stdin is not None
    print("go", file=process.stdin, flush=True)
    finish(process, tmp_path)
    assert process.returncode == 3


def test_a_killed_caller_leaves_no_process_even_if_one_ignores_signals(tmp_path: Path) -> None:
    program = [*CONTAIN, *format_command(tmp_path, "exec sleep 1002", 'trap "" TERM INT; ' + DAEMON)]
    caller = start(sys.executable, "-c", f"import subprocess; subprocess.run({program!r})")
    (container,) = psutil.Process(caller.pid).children()
    caller.kill()
    caller.communicate()
    container.wait()
    assert list_surviving_daemons(tmp_path) == []
