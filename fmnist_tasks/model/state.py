"""The whole state of a training between two epochs, to and from bytes.

Everything that decides what comes next is in it: weights, the optimizer's variables (with them the place in the
schedule), dropout's random state, the learning curves and the best weights so far. Order and variants of the images
follow from seed and epoch, so they need no state of their own.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Protocol

import keras
import numpy as np

from fmnist_tasks.data import npz
from fmnist_tasks.errors import DataError, TrainingError

Curves = dict[str, list[float]]


class Checkpoints(Protocol):
    """Where the states of one training are kept."""

    def save(self, number: int, state: bytes) -> None:
        """Keep the state after that many epochs."""

    def latest(self) -> bytes | None:
        """The state of the most epochs that is kept and intact."""


@dataclass
class Progress:
    """How far a training has come."""

    curves: Curves = field(default_factory=dict)  # one value an epoch; `val_loss` is the one that decides
    best_weights: list[np.ndarray] = field(default_factory=list)  # of the model, at its best validation loss

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.curves.get("val_loss", []))

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation loss, counted from 1; 0 before the first."""
        return int(np.argmin(self.curves["val_loss"])) + 1 if self.epochs else 0

    def add(self, figures: dict[str, float], model: keras.Model) -> None:
        """One more epoch is done."""
        for name, value in figures.items():
            self.curves.setdefault(name, []).append(value)
        if self.best_epoch == self.epochs:
            self.best_weights = model.get_weights()


def pack(model: keras.Model, optimizer: keras.Optimizer, progress: Progress) -> bytes:
    """The state as bytes; the same state gives the same bytes."""
    arrays = {f"model/{number}": variable.numpy() for number, variable in enumerate(model.variables)}
    arrays |= {f"optimizer/{number}": variable.numpy() for number, variable in enumerate(optimizer.variables)}
    arrays |= {f"best/{number}": weight for number, weight in enumerate(progress.best_weights)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, curves=json.dumps(progress.curves), **arrays)
    return buffer.getvalue()


def unpack(state: bytes, model: keras.Model, optimizer: keras.Optimizer) -> Progress:
    """Put the state into model and optimizer, which are built alike, and return how far it had come.

    Raises :class:`TrainingError` if it is no state of theirs, before memory is taken for more than its own size.
    """
    sizes = {"model": len(model.variables), "optimizer": len(optimizer.variables), "best": len(model.weights)}
    names = [f"{owner}/{number}" for owner, size in sizes.items() for number in range(size)]

    def require_stored(*headers: npz.Header) -> None:
        if sum(header.bytes for header in headers) > len(state):
            raise DataError("a checkpoint: unpacks to more than its own size, which `pack` never writes")

    try:
        found = npz.unpack(io.BytesIO(state), "a checkpoint", "curves", *names, check=require_stored)
    except DataError as error:
        raise TrainingError(f"{error}. Delete the checkpoints of this run, and clear the task") from error
    arrays = dict(zip(["curves", *names], found, strict=True))
    for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables)):
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{owner}/{number}"])
    return Progress(json.loads(str(arrays["curves"])), [arrays[f"best/{number}"] for number in range(sizes["best"])])
