"""The optimizer: directions that are orthogonal, kernels whose length is held, Adam for the rest."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fmnist_tasks.model.muon import Muon, inner, orthogonal


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (64, 80)])
def test_all_singular_values_become_nearly_1(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=shape).astype(np.float32) * np.geomspace(1, 10, shape[1], dtype=np.float32)
    found = orthogonal(tf.constant(matrix)).numpy()
    assert found.shape == shape
    values = np.linalg.svd(found, compute_uv=False)
    assert (values > 0.4).all()
    assert (values < 1.3).all()
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    assert (found * (left @ right)).sum() > 0.95 * np.linalg.norm(found) * np.linalg.norm(left @ right)


def test_kernels_of_inner_convolutions_move_by_muon_and_all_else_by_adam() -> None:
    random = np.random.default_rng(0)
    shapes = {"stem": (3, 3, 1, 16), "inner": (3, 3, 16, 32), "dense": (64, 64), "bias": (32,)}
    start = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    slope = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    variables = {name: keras.Variable(value, name=name) for name, value in start.items()}
    assert {name for name, variable in variables.items() if inner(variable)} == {"inner"}
    muon, adam = Muon(0.1), keras.optimizers.Adam(0.1 * 0.12)
    by_adam = {name: keras.Variable(value, name=name) for name, value in start.items() if name != "inner"}
    for optimizer, ours in ((muon, variables), (adam, by_adam)):
        for _ in range(3):
            optimizer.apply([tf.constant(slope[name]) for name in ours], list(ours.values()))
    for name, variable in by_adam.items():
        np.testing.assert_allclose(variables[name].numpy(), variable.numpy(), rtol=1e-6)
    moved = variables["inner"].numpy()
    assert (moved * slope["inner"]).sum() < (start["inner"] * slope["inner"]).sum()
    assert np.linalg.norm(moved) == pytest.approx(np.sqrt(32), rel=0.1)
