"""Reading an `.h5` file in a child process with limits and without secrets, and validating its output."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from fmnist_tasks.child_process import ChildError, run_child
from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5_structure
from fmnist_tasks.model.h5_structure import LIMITS, MAX_FILE
from fmnist_tasks.text import make_printable

Weights = dict[str, list[np.ndarray]]  # by layer; float32

_MAX_HEADER = 4 << 20  # bytes; ours have 30 thousand
_TIMEOUT = 60  # seconds, for a child that waits; the limit of CPU time ends loops

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
    with TemporaryFile() as file, TemporaryFile() as output:
        file.write(data)
        try:
            run_child(Path(h5_structure.__file__), file, output, LIMITS, _TIMEOUT)
        except ChildError as error:
            raise ModelError(str(error)) from error
        return output.read(LIMITS.output + 1)


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
