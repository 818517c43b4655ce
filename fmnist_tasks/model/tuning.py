"""Fine-tuning: on from the base model's weights, with L2 regularisation and a cosine learning-rate schedule."""

from __future__ import annotations

import math

import keras

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.model.cnn import build, take_weights
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.state import Checkpoints
from fmnist_tasks.model.training import Fit, fit
from fmnist_tasks.settings import Profile


def tune(base: keras.Model, arrays: Arrays, classes: int, profile: Profile, seed: int, checkpoints: Checkpoints) -> Fit:
    """Fine-tune a copy of the base model, which itself stays as it was."""
    keras.utils.set_random_seed(seed)
    model = build(profile, classes, profile.tuning.l2, FusedBatchNormalization)
    take_weights(model, base)
    return fit(model, arrays, profile.tuning, seed + 1, cosine, checkpoints)


def cosine(done: float) -> float:
    """Half a cosine from 1 down to nothing (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * done))
