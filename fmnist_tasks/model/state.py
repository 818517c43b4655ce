"""The state of training between two epochs, to and from bytes.

It has everything that the next epochs depend on: weights, the optimizer's variables (with the position in the
schedule), dropout's random state, the learning curves and the best weights so far. The order and augmentation of images
follow from seed and epoch.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fmnist_tasks.data import npz
from fmnist_tasks.errors import DataError, TrainingError
from fmnist_tasks.model.libraries import keras


class Checkpoints(Protocol):
    """The stored states of the training of one model."""

    def save(self, number: int, state: bytes) -> None:
        """Save the state after `number` epochs."""

    def load_latest(self) -> bytes | None:
        """The latest state that is stored and intact; None if there is none."""


@dataclass
class Progress:
    """The progress of training: its learning curves and best weights so far."""

    curves: dict[str, list[float]] = field(default_factory=dict)  # one value per epoch; `val_loss` decides
    best_weights: list[np.ndarray] = field(default_factory=list)  # of the epoch with the lowest `val_loss`

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return len(self.curves.get("val_loss", []))

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest validation loss, counted from 1; 0 before the first epoch."""
        return int(np.argmin(self.curves["val_loss"])) + 1 if self.epochs else 0

    def add_epoch(self, metrics: dict[str, float], model: keras.Model) -> None:
        """Add the metrics of an epoch, and the weights if they are the best."""
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append(value)
        if self.best_epoch == self.epochs:
            self.best_weights = model.get_weights()


def pack(model: keras.Model, optimizer: keras.Optimizer, progress: Progress) -> bytes:
    """The state of training as bytes; the same state gives the same bytes."""
    arrays = {f"model/{number}": variable.numpy() for number, variable in enumerate(model.variables)}
    arrays |= {f"optimizer/{number}": variable.numpy() for number, variable in enumerate(optimizer.variables)}
    arrays |= {f"best/{number}": weight for number, weight in enumerate(progress.best_weights)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, curves=json.dumps(progress.curves), **arrays)
    return buffer.getvalue()


def unpack(state: bytes, model: keras.Model, optimizer: keras.Optimizer) -> Progress:
    """Restore a state into the same model and optimizer, and return the progress of the training.

    Raises :class:`TrainingError` if the state is not theirs, before it allocates more memory than the state's size.
    """
    sizes = {"model": len(model.variables), "optimizer": len(optimizer.variables), "best": len(model.weights)}
    names = [f"{owner}/{number}" for owner, size in sizes.items() for number in range(size)]

    def require_stored(*headers: npz.Header) -> None:
        if sum(header.bytes for header in headers) > len(state):
            raise DataError("a checkpoint is compressed, but this project compresses none")

    try:
        values = npz.read_npz(io.BytesIO(state), "a checkpoint", "curves", *names, check=require_stored)
    except DataError as error:
        raise TrainingError(f"{error}. Delete the checkpoints of this run, and clear the task") from error
    arrays = dict(zip(["curves", *names], values, strict=True))
    for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables)):
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{owner}/{number}"])
    return Progress(json.loads(str(arrays["curves"])), [arrays[f"best/{number}"] for number in range(sizes["best"])])
