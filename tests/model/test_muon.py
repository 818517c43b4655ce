"""The optimizer: orthogonal directions and constant norms for inner kernels, Adam for the rest."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tasks.model.muon import Muon, newton_schulz, uses_muon


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (64, 80)])
def test_newton_schulz_brings_all_singular_values_close_to_1(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=shape).astype(np.float32) * np.geomspace(1, 10, shape[1], dtype=np.float32)
    orthogonal = newton_schulz(tf.constant(matrix)).numpy()
    assert orthogonal.shape == shape
    values = np.linalg.svd(orthogonal, compute_uv=False)
    assert (values > 0.4).all()
    assert (values < 1.3).all()
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    assert (orthogonal * (left @ right)).sum() > 0.95 * np.linalg.norm(orthogonal) * np.linalg.norm(left @ right)


def test_muon_updates_kernels_of_inner_convolutions_and_adam_the_rest() -> None:
    random = np.random.default_rng(0)
    shapes = {"stem": (3, 3, 1, 16), "inner": (3, 3, 16, 32), "dense": (64, 64), "bias": (32,)}
    start = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    variables = {name: keras.Variable(value, name=name) for name, value in start.items()}
    assert {name for name, variable in variables.items() if uses_muon(variable)} == {"inner"}
    muon, adam = Muon(0.1), keras.optimizers.Adam(0.1 * 0.12)
    adam_variables = {name: keras.Variable(value, name=name) for name, value in start.items() if name != "inner"}
    for optimizer, updated in ((muon, variables), (adam, adam_variables)):
        for _ in range(3):
            optimizer.apply([tf.constant(gradients[name]) for name in updated], list(updated.values()))
    for name, variable in adam_variables.items():
        np.testing.assert_allclose(variables[name].numpy(), variable.numpy(), rtol=1e-6)
    moved = variables["inner"].numpy()
    assert (moved * gradients["inner"]).sum() < (start["inner"] * gradients["inner"]).sum()
    assert np.linalg.norm(moved) == pytest.approx(np.sqrt(32), rel=0.1)
