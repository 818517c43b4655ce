"""Fixtures that several tests of the model share."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.model import h5
from fmnist_tasks.model.cnn import build_classifier, build_network
from fmnist_tasks.model.ood.detector import add_ood_head
from fmnist_tasks.settings import PROFILES
from tests.support import synthetic


@pytest.fixture(scope="session")
def saved_model() -> bytes:
    """An untrained model with both outputs, as the bytes of its `.h5`."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28), dtype=np.uint8)
    untrained = build_classifier(
        PROFILES["quick"], 10, synthetic.FORMAT, build_network(PROFILES["quick"], 10, synthetic.FORMAT)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmnist_tasks.model.ood.detector.fit_probe", make_unfitted_probe)
        training = ShardedImages.from_arrays(images, np.zeros(len(images), np.uint8))
        return h5.encode_model(add_ood_head(untrained, training, synthetic.PROPERTIES))


def make_unfitted_probe(features: np.ndarray, targets: np.ndarray, hidden: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random weights of a probe."""
    random = np.random.default_rng(1)
    sizes = ((features.shape[1], hidden), (hidden, 1))
    return [(random.normal(0, 0.1, size).astype(np.float32), np.zeros(size[1], np.float32)) for size in sizes]
