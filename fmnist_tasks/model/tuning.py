"""Fine-tuning: on from the base model's weights, with L2 regularisation and a cosine learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.model.cnn import build
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.training import Fit, fit
from fmnist_tasks.settings import Profile


def tune(base: keras.Model, arrays: Arrays, classes: int, profile: Profile, seed: int) -> Fit:
    """Fine-tune a copy of the published form of the base model, which itself stays as it was."""
    keras.utils.set_random_seed(seed)
    model = build(profile, classes, profile.weight_decay, FusedBatchNormalization)
    for layer in model.layers:  # the base model has further layers, for novelty
        layer.set_weights(base.get_layer(layer.name).get_weights())
    return fit(model, arrays, profile, seed + 1, profile.tuning_epochs, cosine(profile.tuning_rate))


def cosine(start: float) -> Callable[[float], float]:
    """Half a cosine from the start rate down to nothing (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return lambda done: start * 0.5 * (1 + math.cos(math.pi * done))
