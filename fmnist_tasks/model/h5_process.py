"""Reads an `.h5` file in a child process with limits, without secrets, and checks what it answers."""

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
from fmnist_tasks.model.h5_structure import MAX_ANSWER, MAX_CPU, MAX_FILE, MAX_MEMORY
from fmnist_tasks.text import make_printable

Weights = dict[str, list[np.ndarray]]  # by layer; float32

_MAX_HEADER = 4 << 20  # bytes; ours have 30 thousand
_SECONDS = 60  # against a machine that stands still; MAX_CPU ends loops
# OpenBLAS would reserve memory for every core.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}

_Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=4)]
_Layer = Annotated[tuple[str, list[_Shape]], Strict(False)]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    configuration: str = ""
    weights: list[_Layer] = []
    fault: str = ""


@lru_cache(maxsize=1)  # the steps of a run in one process, and tests, load one model several times
def read(data: bytes) -> tuple[str, Weights]:
    """The configuration, as JSON, and the weights of the model in the bytes of an `.h5`; both are untrusted.

    Raises :class:`ModelError` if the bytes are no such file, or reading them takes too much or ends badly.
    """
    if len(data) > MAX_FILE:
        raise ModelError(f"has {len(data):,} bytes, more than {MAX_FILE:,}")
    return decode(_ask_child(data))


def _ask_child(data: bytes) -> bytes:
    # Files, not pipes: the child's own limit bounds what it writes, and nobody waits for a pipe's other end.
    with TemporaryFile() as file, TemporaryFile() as answer, TemporaryFile() as errors:
        file.write(data)
        file.seek(0)
        command = [sys.executable, "-I", h5_structure.__file__]
        try:
            ended = subprocess.run(
                command, stdin=file, stdout=answer, stderr=errors, cwd="/", env=_ENVIRONMENT, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"could not be read within {_SECONDS} seconds") from error
        except OSError as error:
            raise ModelError(f"could not be read: Python ({sys.executable}) does not start ({error})") from error
        if ended.returncode:
            errors.seek(0)
            last = make_printable(errors.read(1 << 16).decode(errors="replace"))[-200:]
            how = signal.Signals(-ended.returncode).name if ended.returncode < 0 else f"code {ended.returncode}: {last}"
            limits = f"limits: {MAX_MEMORY >> 20} MiB, {MAX_CPU} s of CPU"
            raise ModelError(f"could not be read: the reading process ended with {how} ({limits})")
        answer.seek(0)
        return answer.read(MAX_ANSWER + 1)


def decode(answer: bytes) -> tuple[str, Weights]:
    """The configuration and the weights in an answer of the child; raises :class:`ModelError` if it has neither."""
    start = 8 + int.from_bytes(answer[:8], "little")
    if start > _MAX_HEADER:
        raise ModelError("cannot be read; the reading process returned an invalid answer (its header is too long)")
    try:
        header = _Header.model_validate_json(answer[8:start])
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise ModelError(f"cannot be read; the reading process returned an invalid answer ({why})") from error
    if header.fault:
        raise ModelError(make_printable(header.fault[:300]))
    weights: Weights = {}
    for layer, shapes in header.weights:
        if layer in weights:
            raise ModelError(f"has the weights of {make_printable(layer[:40])} twice")
        weights[layer] = []
        for shape in shapes:
            count = math.prod(shape)
            if 4 * count > len(answer) - start:
                raise ModelError("cannot be read; the reading process returned fewer bytes than it declared")
            weights[layer].append(np.frombuffer(answer, "<f4", count, start).reshape(shape))
            start += 4 * count
    if start != len(answer):
        raise ModelError("cannot be read; the reading process returned more bytes than it declared")
    return header.configuration, weights
