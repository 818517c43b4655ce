"""The optimizer: Muon for the kernels of the inner convolutions, Adam for everything else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a kernel, taken as a matrix, by
the nearest orthogonal one, so that every direction learns at the same pace. Newton and Schulz's iteration finds it with
a few small matrix products. Keras's own Muon serves dense layers only; the length of each kernel is held, as in
KellerJordan/cifar10-airbench.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

_ADAM_RATIO = 0.12  # Adam's learning rate as a share of Muon's
_MOMENTUM = 0.9
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic with the steepest slope at 0, from the source above
_INNER = 64  # inputs of a filter from which on Muon serves: the first convolution, with 9, is left to Adam


class Muon(keras.optimizers.Adam):  # type: ignore[misc]
    """`learning_rate` is Muon's: the length of a step where a kernel's is the root of its number of filters."""

    def build(self, variables: list[Any]) -> None:
        """Make Adam's variables and the momentum of the inner kernels."""
        if self.built:
            return
        super().build(variables)
        new = self.add_variable_from_reference
        index = self._get_variable_index
        self._inner_momentum = {index(kernel): new(kernel, "inner_momentum") for kernel in variables if inner(kernel)}

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """One step of one variable."""
        if not inner(variable):
            super().update_step(gradient, variable, learning_rate * _ADAM_RATIO)
            return
        momentum, filters = self._inner_momentum[self._get_variable_index(variable)], variable.shape[-1]
        momentum.assign(_MOMENTUM * momentum + gradient)
        direction = orthogonal(tf.reshape(gradient + _MOMENTUM * momentum, (-1, filters)))
        scale = max(1.0, filters / direction.shape[0]) ** 0.5
        held = variable * (filters**0.5 / tf.norm(variable))
        variable.assign(held - learning_rate * scale * tf.reshape(direction, variable.shape))


def inner(variable: Any) -> bool:
    """Whether the variable is the kernel of an inner convolution, (height, width, inputs, filters)."""
    return len(variable.shape) == 4 and math.prod(variable.shape[:-1]) >= _INNER


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Nearly the nearest matrix whose singular values are all 1, of the same shape (N, M), float32."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)  # singular values of at most 1, as the iteration asks
    linear, cubic, quintic = _COEFFICIENTS
    # Each iteration multiplies x by a polynomial of x xᵀ, which changes by that polynomial alone: so the long side of
    # x takes part in two products, not in two an iteration.
    square, factor = tf.matmul(x, x, transpose_b=True), tf.eye(x.shape[0])
    for _ in range(_ITERATIONS):
        polynomial = linear * tf.eye(x.shape[0]) + cubic * square + quintic * tf.matmul(square, square)
        factor = tf.matmul(polynomial, factor)
        square = tf.matmul(tf.matmul(polynomial, square), polynomial)
    x = tf.matmul(factor, x)
    return tf.transpose(x) if tall else x
