"""Training: Muon and Adam under a learning-rate schedule, early stopping on validation loss, one line an epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model.batches import batch_count, training_batches
from fmnist_tasks.model.cnn import build, first_convolution
from fmnist_tasks.model.h5 import outputs
from fmnist_tasks.model.muon import Muon
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.state import Checkpoints, Curves, Progress, pack, unpack
from fmnist_tasks.model.temperature import best_temperature
from fmnist_tasks.model.whitening import whitened
from fmnist_tasks.settings import Profile, Stage

log = logging.getLogger(__name__)

Rate = Callable[[float], float]  # from the share of training done, 0..1, to the share of the peak learning rate
Figures = tuple[float, float]  # cross-entropy and accuracy
Batch = tuple[np.ndarray, np.ndarray]  # images, uint8 (B, 28, 28, 1), and targets, float32 (B, classes)
Step = Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]  # a batch to cross-entropy and accuracy


@dataclass(frozen=True)
class Fit:
    """A trained network and how it came about."""

    model: keras.Model
    curves: Curves  # by epoch: loss and val_loss (see `fit`), accuracy, val_accuracy, learning_rate, seconds
    best_epoch: int  # counted from 1; its weights are the model's
    train_accuracy: float  # running figure of that epoch, on augmented images with dropout

    def as_json(self) -> dict[str, Any]:
        """All but the model."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def train(arrays: Arrays, classes: int, profile: Profile, seed: int, checkpoints: Checkpoints) -> Fit:
    """Train a network from scratch; the same arrays, profile, seed and machine give the same weights."""
    keras.utils.set_random_seed(seed)
    model = build(profile, classes, profile.base.l2, FusedBatchNormalization)
    first = first_convolution(model)
    (kernel,) = first.get_weights()
    first.set_weights([whitened(kernel, arrays.training)])
    return fit(model, arrays, profile.base, seed, one_cycle, checkpoints)


def fit(model: keras.Model, arrays: Arrays, stage: Stage, seed: int, rate: Rate, checkpoints: Checkpoints) -> Fit:
    """Minimise cross-entropy and give the model the weights of its best validation loss.

    That loss is what is left at the temperature that suits the model best, since it is published with one: a model that
    has learnt more, and is too sure of it, is the better one. Goes on from the newest checkpoint, and ends with the
    weights of a training that was never interrupted. Raises :class:`TrainingError` as soon as a loss is not a finite
    number.
    """
    optimizer = Muon(stage.learning_rate)
    optimizer.build(model.trainable_variables)
    state = checkpoints.latest()
    progress = unpack(state, model, optimizer) if state else Progress()
    count = batch_count(arrays.training, stage)
    step = _training_step(model, optimizer, stage.smoothing)
    while progress.epochs < min(stage.epochs, progress.best_epoch + stage.patience):
        epoch, clock = progress.epochs, time.monotonic()
        batches = training_batches(arrays.training, stage, model.output.shape[-1], seed, epoch)
        rates = [stage.learning_rate * rate((epoch + done / count) / stage.epochs) for done in range(count)]
        loss, accuracy = _epoch(step, optimizer, batches, rates, f"epoch {epoch + 1}")
        probabilities = tf.nn.softmax(outputs(model, arrays.validation_images)[0]).numpy()
        _, val_loss = best_temperature(arrays.validation_labels, probabilities)
        _require_finite(val_loss, f"on the validation images after epoch {epoch + 1}")
        val_accuracy = float((probabilities.argmax(axis=1) == arrays.validation_labels).mean())
        figures = {
            "loss": loss,
            "val_loss": val_loss,
            "accuracy": accuracy,
            "val_accuracy": val_accuracy,
            "learning_rate": float(optimizer.learning_rate),
            "seconds": round(time.monotonic() - clock, 2),
        }
        progress.add(figures, model)
        checkpoints.save(progress.epochs, pack(model, optimizer, progress))
        log.info(
            "epoch %d/%d  loss %.4f  accuracy %.4f  validation loss %.4f  validation accuracy %.4f  %.1f s",
            *(progress.epochs, stage.epochs, loss, accuracy, val_loss, val_accuracy, figures["seconds"]),
        )
    model.set_weights(progress.best_weights)
    curves, best = progress.curves, progress.best_epoch - 1
    return Fit(model=model, curves=curves, best_epoch=progress.best_epoch, train_accuracy=curves["accuracy"][best])


def one_cycle(done: float) -> float:
    """Linear warm-up over the first tenth, then linear decay to a hundredth (Smith 2018, arXiv:1803.09820)."""
    share = done / 0.1 if done < 0.1 else (1 - done) / 0.9
    return 0.01 + 0.99 * share


def _epoch(step: Step, optimizer: keras.Optimizer, batches: Iterable[Batch], rates: list[float], name: str) -> Figures:
    """One pass over the training images; the figures are running ones, on augmented images with dropout."""
    losses, shares = 0.0, 0.0
    for number, (rate, (images, targets)) in enumerate(zip(rates, batches, strict=True), start=1):
        optimizer.learning_rate.assign(rate)
        loss, right = (float(figure) for figure in step(images, targets))
        _require_finite(loss, f"at step {number} of {name}")
        losses, shares = losses + loss, shares + right
    return losses / len(rates), shares / len(rates)


def _require_finite(loss: float, where: str) -> None:
    """End a training whose weights are spoilt."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"loss is {loss} {where}; training stopped, nothing was kept. "
            "Look for extreme pixels in the data, or lower the learning rate of the profile in settings.py"
        )


def _training_step(model: keras.Model, optimizer: keras.Optimizer, smoothing: float) -> Step:
    """A function that takes the model one step on; what it minimises has smoothed targets, what it returns has not."""
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(images: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            others = -tf.reduce_mean(tf.nn.log_softmax(logits))  # cross-entropy of targets that know nothing
            total = tf.add_n([(1 - smoothing) * loss + smoothing * others, *model.losses])
        optimizer.apply(tape.gradient(total, [variable.value for variable in variables]), variables)
        right = tf.argmax(logits, axis=1) == tf.argmax(targets, axis=1)
        return loss, tf.reduce_mean(tf.cast(right, tf.float32))

    return cast(Step, step)
