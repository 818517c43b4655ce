"""Whatever becomes of a test run, none of its processes outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fmnist_tasks.settings import PROJECT

# A service in a session of its own, whose parent ends at once.
COMMAND = """
setsid sh -c '{trap}sleep 1000 & echo $! >{folder}/daemon' &
while ! [ -s {folder}/daemon ]; do sleep 0.05; done
echo ready
{last}
"""


def contained(folder: Path, last: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.support.contain",
        "sh",
        "-c",
        COMMAND.format(folder=folder, last=last, trap=""),
    ]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def left_of(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.iterdir() if psutil.pid_exists(int(file.read_text()))]


@pytest.mark.parametrize(("last", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -signal.SIGKILL)])
def test_a_command_that_ends_leaves_nothing(tmp_path: Path, last: str, code: int) -> None:
    process = contained(tmp_path, last)
    _, errors = process.communicate()
    assert process.returncode == code % 256
    assert " cores used" in errors
    assert left_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_interrupted_leaves_nothing(tmp_path: Path, number: int) -> None:
    process = contained(tmp_path, "exec sleep 1002")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    process.communicate()
    assert process.returncode == 130
    assert left_of(tmp_path) == []


def test_a_command_whose_caller_is_killed_leaves_nothing_even_of_what_does_not_want_to_end(tmp_path: Path) -> None:
    command = COMMAND.format(folder=tmp_path, last="exec sleep 1002", trap='trap "" TERM INT; ')
    program = [sys.executable, "-m", "tests.support.contain", "sh", "-c", command]
    caller = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({program!r})"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "ready\n"
    (container,) = psutil.Process(caller.pid).children()
    caller.kill()
    caller.communicate()
    container.wait()
    assert left_of(tmp_path) == []
