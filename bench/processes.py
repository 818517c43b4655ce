"""Processes of their own, so that what one measurement leaves in memory and caches does not shape the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from fmnist_tasks.settings import PROJECT


def run_command(*command: str, **environment: str) -> tuple[float, str]:
    """Seconds and standard output of a command in the project's folder; ends the benchmark if it fails."""
    clock = time.monotonic()
    ended = subprocess.run(command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True)
    seconds = time.monotonic() - clock
    if ended.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
    return seconds, ended.stdout


def run_module(module: str, *arguments: str, **environment: str) -> Any:
    """What a module, run as a program, prints on its last line, which is JSON."""
    _, output = run_command(sys.executable, "-m", module, *arguments, **environment)
    return json.loads(output.splitlines()[-1])
