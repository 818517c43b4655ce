"""Run each measurement in a separate process, so that memory and caches of one do not affect the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from fmnist_tasks.settings import PROJECT


def run_command(*command: str, **environment: str) -> tuple[float, str]:
    """Run a command in the project folder, and return seconds and standard output. Exits if the command fails."""
    clock = time.monotonic()
    result = subprocess.run(command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True)
    seconds = time.monotonic() - clock
    if result.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return seconds, result.stdout


def run_module(module: str, *arguments: str, **environment: str) -> Any:
    """Run a module as a program, and return the JSON on the last line of its output."""
    _, output = run_command(sys.executable, "-m", module, *arguments, **environment)
    return json.loads(output.splitlines()[-1])
