"""Running a program of this project in a child process that has no secrets and confines itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO

from fmnist_tasks.confinement import Limits
from fmnist_tasks.text import make_printable

# Otherwise OpenBLAS reserves memory for each core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}


class ChildError(Exception):
    """A child process failed; the message says how, without a subject."""


def run_child(program: Path, file: IO[bytes] | BinaryIO, output: IO[bytes], limits: Limits, seconds: float) -> None:
    """Run a program with a file as its standard input, from the start, and write its output to another file.

    Files, not pipes: the child's own limit applies to what it writes, and no process blocks on a pipe. Raises
    :class:`ChildError` if it fails, exceeds its limits, or does not end in time.
    """
    file.seek(0)
    with TemporaryFile() as errors:
        command = [sys.executable, "-I", str(program)]
        try:
            result = subprocess.run(
                command, stdin=file, stdout=output, stderr=errors, cwd="/", env=_ENVIRONMENT, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise ChildError(f"could not be read within {seconds:g} seconds") from error
        except OSError as error:
            raise ChildError(f"could not be read: Python ({sys.executable}) does not start ({error})") from error
        if result.returncode:
            errors.seek(0)
            last = make_printable(errors.read(1 << 16).decode(errors="replace"))[-200:]
            code = result.returncode
            how = signal.Signals(-code).name if code < 0 else f"code {code}: {last}"
            raise ChildError(f"could not be read: the reading process ended with {how} ({limits})")
    output.seek(0)
