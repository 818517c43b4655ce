"""Reading an `.h5` file in a child process with limits and without secrets, and validating its output."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from functools import lru_cache
from tempfile import TemporaryFile
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5_structure
from fmnist_tasks.model.h5_structure import MAX_CPU, MAX_FILE, MAX_MEMORY, MAX_OUTPUT
from fmnist_tasks.text import make_printable

Weights = dict[str, list[np.ndarray]]  # by layer; float32

_MAX_HEADER = 4 << 20  # bytes; ours have 30 thousand
_TIMEOUT = 60  # seconds, for a child that waits; MAX_CPU ends loops
# Otherwise OpenBLAS reserves memory for each core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}

_Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=4)]
_Layer = Annotated[tuple[str, list[_Shape]], Strict(False)]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    configuration: str = ""
    weights: list[_Layer] = []
    fault: str = ""


@lru_cache(maxsize=1)  # several steps in one process load the same model, as do tests
def read_model(data: bytes) -> tuple[str, Weights]:
    """Read the configuration (JSON) and the weights of a model from the bytes of an `.h5` file; both are untrusted.

    Raises :class:`ModelError` if the bytes are not such a file, or if the child fails or exceeds its limits.
    """
    if len(data) > MAX_FILE:
        raise ModelError(f"has {len(data):,} bytes, more than {MAX_FILE:,}")
    return decode_output(_run_child(data))


def _run_child(data: bytes) -> bytes:
    # Files, not pipes: the child's own limit applies to what it writes, and no process blocks on a pipe.
    with TemporaryFile() as file, TemporaryFile() as output, TemporaryFile() as errors:
        file.write(data)
        file.seek(0)
        command = [sys.executable, "-I", h5_structure.__file__]
        try:
            result = subprocess.run(
                command, stdin=file, stdout=output, stderr=errors, cwd="/", env=_ENVIRONMENT, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"could not be read within {_TIMEOUT} seconds") from error
        except OSError as error:
            raise ModelError(f"could not be read: Python ({sys.executable}) does not start ({error})") from error
        if result.returncode:
            errors.seek(0)
            last = make_printable(errors.read(1 << 16).decode(errors="replace"))[-200:]
            code = result.returncode
            how = signal.Signals(-code).name if code < 0 else f"code {code}: {last}"
            limits = f"limits: {MAX_MEMORY >> 20} MiB, {MAX_CPU} s of CPU"
            raise ModelError(f"could not be read: the reading process ended with {how} ({limits})")
        output.seek(0)
        return output.read(MAX_OUTPUT + 1)


def decode_output(output: bytes) -> tuple[str, Weights]:
    """The configuration and the weights in the output of the child; raises :class:`ModelError` if it is invalid."""
    start = 8 + int.from_bytes(output[:8], "little")
    if start > _MAX_HEADER:
        raise ModelError("cannot be read: the reading process returned invalid output (its header is too long)")
    try:
        header = _Header.model_validate_json(output[8:start])
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ModelError(f"cannot be read: the reading process returned invalid output ({why})") from error
    if header.fault:
        raise ModelError(make_printable(header.fault[:300]))
    weights: Weights = {}
    for layer, shapes in header.weights:
        if layer in weights:
            raise ModelError(f"has the weights of {make_printable(layer[:40])} twice")
        weights[layer] = []
        for shape in shapes:
            count = math.prod(shape)
            if 4 * count > len(output) - start:
                raise ModelError("cannot be read: the reading process returned fewer bytes than it declared")
            weights[layer].append(np.frombuffer(output, "<f4", count, start).reshape(shape))
            start += 4 * count
    if start != len(output):
        raise ModelError("cannot be read: the reading process returned more bytes than it declared")
    return header.configuration, weights
