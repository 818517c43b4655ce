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
def saved_model() -> bytes:
    """An untrained model with both outputs, as the bytes of its `.h5`."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    untrained = trained(PROFILES["quick"], 10, build(PROFILES["quick"], 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmnist_tasks.model.probe.fitted", make_unfitted_probe)
        return h5.save(novelty.publishable(untrained, Training.of(images, np.zeros(len(images), np.uint8))))


def make_unfitted_probe(features: np.ndarray, wanted: np.ndarray, hidden: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of a probe that has learnt nothing."""
    random = np.random.default_rng(1)
    sizes = ((features.shape[1], hidden), (hidden, 1))
    return [(random.normal(0, 0.1, size).astype(np.float32), np.zeros(size[1], np.float32)) for size in sizes]
