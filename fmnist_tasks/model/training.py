"""Training: Adam under a given learning-rate schedule, early stopping on validation loss, one line an epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model.batches import ordered_batches, training_batches
from fmnist_tasks.model.cnn import build
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.settings import Profile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """A trained network and how it came about."""

    model: keras.Model
    curves: dict[str, list[float]]  # by epoch: loss and val_loss (cross-entropy), accuracy, val_accuracy, rate, seconds
    best_epoch: int  # counted from 1; its weights are the model's
    train_accuracy: float  # running figure of that epoch, on augmented images with dropout
    validation_accuracy: float
    validation_loss: float

    def as_json(self) -> dict[str, Any]:
        """All but the model."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def train(arrays: Arrays, classes: int, profile: Profile, seed: int) -> Fit:
    """Train a network from scratch; the same arrays, profile, seed and machine give the same weights."""
    keras.utils.set_random_seed(seed)
    model = build(profile, classes, normalisation=FusedBatchNormalization)
    return fit(model, arrays, profile, seed, profile.epochs, one_cycle(profile.learning_rate))


def fit(
    model: keras.Model, arrays: Arrays, profile: Profile, seed: int, epochs: int, rate: Callable[[float], float]
) -> Fit:
    """Minimise sparse categorical cross-entropy and restore the weights of the best validation loss.

    `rate` maps the share of training done, 0..1, to the learning rate. Raises :class:`TrainingError` as soon as a
    loss is not a finite number.
    """
    batches = training_batches(arrays.train_images, arrays.train_labels, profile, seed)
    watch = _Watch(rate, epochs, len(batches))
    entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")
    model.compile(
        optimizer=keras.optimizers.Adam(rate(0.0)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", entropy],
    )
    # Keras's own val_loss includes the L2 penalty; without it base and tuned model compare.
    stopping = keras.callbacks.EarlyStopping(
        monitor="val_cross_entropy", mode="min", patience=profile.patience, restore_best_weights=True
    )
    history = model.fit(
        batches,
        epochs=epochs,
        validation_data=ordered_batches(arrays.validation_images[..., None], arrays.validation_labels),
        callbacks=[stopping, watch],
        shuffle=False,  # the batches are
        verbose=0,
    ).history
    curves = {
        "loss": [float(value) for value in history["cross_entropy"]],
        "val_loss": [float(value) for value in history["val_cross_entropy"]],
        "accuracy": [float(value) for value in history["accuracy"]],
        "val_accuracy": [float(value) for value in history["val_accuracy"]],
        "learning_rate": watch.rates,
        "seconds": watch.seconds,
    }
    best = int(np.argmin(curves["val_loss"]))
    return Fit(
        model=model,
        curves=curves,
        best_epoch=best + 1,
        train_accuracy=curves["accuracy"][best],
        validation_accuracy=curves["val_accuracy"][best],
        validation_loss=curves["val_loss"][best],
    )


def one_cycle(peak: float) -> Callable[[float], float]:
    """Linear warm-up over the first tenth, then linear decay to a hundredth (Smith 2018, arXiv:1803.09820)."""

    def rate(done: float) -> float:
        share = done / 0.1 if done < 0.1 else (1 - done) / 0.9
        return peak * (0.01 + 0.99 * share)

    return rate


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the learning rate of each step, stops at a loss that is no number, reports each epoch in one line."""

    def __init__(self, rate: Callable[[float], float], epochs: int, steps: int) -> None:
        super().__init__()
        self._rate, self._epochs, self._steps = rate, epochs, steps
        self._epoch = 0
        self.rates: list[float] = []
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._started = epoch, time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = (self._epoch + batch / self._steps) / self._epochs
        self.model.optimizer.learning_rate.assign(self._rate(done))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"loss is {loss} at step {batch + 1} of epoch {self._epoch + 1}; training stopped, nothing was kept. "
                "Look for extreme pixels in the data, or lower the learning rate of the profile in settings.py"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        figures = logs or {}
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.seconds.append(round(time.monotonic() - self._started, 2))
        log.info(
            "epoch %d/%d  loss %.4f  accuracy %.4f  validation loss %.4f  validation accuracy %.4f  %.1f s",
            epoch + 1,
            self._epochs,
            figures["cross_entropy"],
            figures["accuracy"],
            figures["val_cross_entropy"],
            figures["val_accuracy"],
            self.seconds[-1],
        )
