"""What several tests of the model room start from."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fmnist_tasks.data.shards import Training
from fmnist_tasks.model import h5, novelty
from fmnist_tasks.model.cnn import build, trained
from fmnist_tasks.settings import PROFILES


@pytest.fixture(scope="session")
def saved() -> bytes:
    """An untrained model with both outputs, as the bytes of its `.h5`."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    untrained = trained(PROFILES["quick"], 10, build(PROFILES["quick"], 10))
    return h5.save(novelty.publishable(untrained, Training.of(images, np.zeros(len(images), np.uint8))))
