"""Training: Muon and Adam with a learning-rate schedule, and early stopping on validation loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model.cnn import build_network, find_first_convolution
from fmnist_tasks.model.h5 import predict_outputs
from fmnist_tasks.model.libraries import keras, tf
from fmnist_tasks.model.mini_batches import count_batches, make_training_batches
from fmnist_tasks.model.muon import Muon
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.state import Checkpoints, Progress, pack, unpack
from fmnist_tasks.model.temperature import fit_temperature
from fmnist_tasks.model.whitening import init_whitening_kernel
from fmnist_tasks.schemas.data import ImageFormat
from fmnist_tasks.schemas.runs import Curves
from fmnist_tasks.settings import Profile, Stage

log = logging.getLogger(__name__)

Schedule = Callable[[float], float]  # progress of the training, 0..1, to the share of the peak learning rate
Batch = tuple[np.ndarray, np.ndarray]  # images (B, H, W, C), uint8, and targets (B, classes), float32
Step = Callable[[np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]  # a batch to cross-entropy and accuracy


@dataclass(frozen=True)
class Fit:
    """A trained network and its learning curves."""

    model: keras.Model
    curves: Curves  # `val_loss` is after temperature scaling
    best_epoch: int  # counted from 1; the model has its weights
    train_accuracy: float  # running mean of the best epoch, on augmented images with dropout


def train_model(
    arrays: Arrays, classes: int, image_format: ImageFormat, profile: Profile, seed: int, checkpoints: Checkpoints
) -> Fit:
    """Train a network from scratch; the same arrays, profile, seed and machine give the same weights."""
    keras.utils.set_random_seed(seed)
    model = build_network(profile, classes, image_format, profile.base.l2, FusedBatchNormalization)
    first = find_first_convolution(model)
    (kernel,) = first.get_weights()
    first.set_weights([init_whitening_kernel(kernel, arrays.training)])
    return fit_model(model, arrays, profile.base, seed, one_cycle, checkpoints, flip=image_format.horizontal_flip)


def fit_model(
    model: keras.Model,
    arrays: Arrays,
    stage: Stage,
    seed: int,
    schedule: Schedule,
    checkpoints: Checkpoints,
    *,
    flip: bool,
) -> Fit:
    """Minimise cross-entropy; the model ends with the weights of the lowest validation loss.

    With `flip`, half of the training images are flipped horizontally in each epoch. Validation loss is measured after
    temperature scaling, as in a release: overconfidence alone does not make a model worse. Training resumes from the
    latest checkpoint, and ends with the same weights as without an interruption.
    Raises :class:`TrainingError` as soon as a loss is NaN or infinite.
    """
    optimizer = Muon(stage.learning_rate)
    optimizer.build(model.trainable_variables)
    state = checkpoints.load_latest()
    progress = unpack(state, model, optimizer) if state else Progress()
    count = count_batches(arrays.training, stage)
    step = _build_training_step(model, optimizer, stage.label_smoothing)
    while progress.epochs < min(stage.epochs, progress.best_epoch + stage.patience):
        epoch, clock = progress.epochs, time.monotonic()
        batches = make_training_batches(arrays.training, stage, model.output.shape[-1], seed, epoch, flip=flip)
        rates = [stage.learning_rate * schedule((epoch + number / count) / stage.epochs) for number in range(count)]
        loss, accuracy = _run_epoch(step, optimizer, batches, rates, f"epoch {epoch + 1}")
        probabilities = tf.nn.softmax(predict_outputs(model, arrays.validation_images)[0]).numpy()
        _, val_loss = fit_temperature(arrays.validation_labels, probabilities)
        _require_finite(val_loss, f"on the validation images after epoch {epoch + 1}")
        val_accuracy = float((probabilities.argmax(axis=1) == arrays.validation_labels).mean())
        metrics = {
            "loss": loss,
            "val_loss": val_loss,
            "accuracy": accuracy,
            "val_accuracy": val_accuracy,
            "learning_rate": float(optimizer.learning_rate),
            "seconds": round(time.monotonic() - clock, 2),
        }
        progress.add_epoch(metrics, model)
        checkpoints.save(progress.epochs, pack(model, optimizer, progress))
        log.info(
            "epoch %d/%d  loss %.4f  accuracy %.4f  validation loss %.4f  validation accuracy %.4f  %.1f s",
            *(progress.epochs, stage.epochs, loss, accuracy, val_loss, val_accuracy, metrics["seconds"]),
        )
    model.set_weights(progress.best_weights)
    curves, best = Curves(**progress.curves), progress.best_epoch
    return Fit(model=model, curves=curves, best_epoch=best, train_accuracy=curves.accuracy[best - 1])


def one_cycle(progress: float) -> float:
    """Linear warm-up over the first tenth, then linear decay to a hundredth (Smith 2018, arXiv:1803.09820)."""
    share = progress / 0.1 if progress < 0.1 else (1 - progress) / 0.9
    return 0.01 + 0.99 * share


def _run_epoch(
    step: Step, optimizer: keras.Optimizer, batches: Iterable[Batch], rates: list[float], name: str
) -> tuple[float, float]:
    """Train for one epoch; returns mean cross-entropy and accuracy, on augmented images with dropout."""
    losses, accuracies = 0.0, 0.0
    for number, (rate, (images, targets)) in enumerate(zip(rates, batches, strict=True), start=1):
        optimizer.learning_rate.assign(rate)
        loss, accuracy = (float(value) for value in step(images, targets))
        _require_finite(loss, f"at step {number} of {name}")
        losses, accuracies = losses + loss, accuracies + accuracy
    return losses / len(rates), accuracies / len(rates)


def _require_finite(loss: float, where: str) -> None:
    """Raise :class:`TrainingError` if a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"loss is {loss} {where}; training stopped, nothing was saved. "
            "Look for extreme pixels in the data, or lower the learning rate of the profile in settings.py"
        )


def _build_training_step(model: keras.Model, optimizer: keras.Optimizer, smoothing: float) -> Step:
    """A function that trains on one batch: it minimises the loss with smoothed targets, and returns the plain one."""
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(images: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            others = -tf.reduce_mean(tf.nn.log_softmax(logits))  # cross-entropy of uniform targets
            total = tf.add_n([(1 - smoothing) * loss + smoothing * others, *model.losses])
        optimizer.apply(tape.gradient(total, [variable.value for variable in variables]), variables)
        is_correct = tf.argmax(logits, axis=1) == tf.argmax(targets, axis=1)
        return loss, tf.reduce_mean(tf.cast(is_correct, tf.float32))

    return cast(Step, step)
