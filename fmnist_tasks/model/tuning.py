"""Fine-tuning: from the base model's weights, with L2 regularisation and a cosine learning-rate schedule."""

from __future__ import annotations

import math

from fmnist_tasks.data.dataset import Arrays
from fmnist_tasks.model.cnn import build_network, copy_weights
from fmnist_tasks.model.libraries import keras
from fmnist_tasks.model.normalisation import FusedBatchNormalization
from fmnist_tasks.model.state import Checkpoints
from fmnist_tasks.model.training import Fit, fit_model
from fmnist_tasks.schemas.data import ImageFormat
from fmnist_tasks.settings import Profile


def fine_tune_model(
    base: keras.Model,
    arrays: Arrays,
    classes: int,
    image_format: ImageFormat,
    profile: Profile,
    seed: int,
    checkpoints: Checkpoints,
) -> Fit:
    """Fine-tune a copy of the base model; the base model does not change."""
    keras.utils.set_random_seed(seed)
    model = build_network(profile, classes, image_format, profile.tuning.l2, FusedBatchNormalization)
    copy_weights(model, base)
    return fit_model(model, arrays, profile.tuning, seed + 1, cosine, checkpoints, flip=image_format.horizontal_flip)


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))
