"""The optimizer: Muon for the kernels of the inner convolutions, Adam for everything else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a kernel, taken as a matrix, by
the nearest orthogonal matrix, so every direction learns at the same rate. The Newton-Schulz iteration finds it with a
few small matrix products. The norm of each kernel stays constant, as in KellerJordan/cifar10-airbench. Keras's own Muon
supports dense layers only.
"""

from __future__ import annotations

import math
from typing import Any

from fmnist_tasks.model.libraries import keras, tf

_ADAM_RATIO = 0.12  # Adam's learning rate as a share of Muon's
_MOMENTUM = 0.9
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic with the steepest slope at 0, from the source above
_MIN_INPUTS = 64  # of a filter, for Muon; Adam updates the first convolution, which has 9


class Muon(keras.optimizers.Adam):  # type: ignore[misc]
    """Muon for the kernels of inner convolutions, Adam for everything else.

    `learning_rate` is Muon's: the norm of a step of a kernel whose norm is the square root of its number of filters.
    """

    def build(self, variables: list[Any]) -> None:
        """Create Adam's variables and the momentum of the inner kernels."""
        if self.built:
            return
        super().build(variables)
        self._inner_momentum = {
            self._get_variable_index(kernel): self.add_variable_from_reference(kernel, "inner_momentum")
            for kernel in variables
            if uses_muon(kernel)
        }

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Update one variable by one step."""
        if not uses_muon(variable):
            super().update_step(gradient, variable, learning_rate * _ADAM_RATIO)
            return
        momentum, filters = self._inner_momentum[self._get_variable_index(variable)], variable.shape[-1]
        momentum.assign(_MOMENTUM * momentum + gradient)
        direction = newton_schulz(tf.reshape(gradient + _MOMENTUM * momentum, (-1, filters)))
        scale = max(1.0, filters / direction.shape[0]) ** 0.5
        normalised = variable * (filters**0.5 / tf.norm(variable))
        variable.assign(normalised - learning_rate * scale * tf.reshape(direction, variable.shape))


def uses_muon(variable: Any) -> bool:
    """Whether the variable is the kernel of an inner convolution, (height, width, inputs, filters)."""
    return len(variable.shape) == 4 and math.prod(variable.shape[:-1]) >= _MIN_INPUTS


def newton_schulz(matrix: tf.Tensor) -> tf.Tensor:
    """Approximate the nearest matrix with singular values of 1 to a matrix (N, M), float32."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if tall else matrix
    x = x / (tf.norm(x) + 1e-7)  # singular values of at most 1, which the iteration requires
    linear, cubic, quintic = _COEFFICIENTS
    # Each iteration multiplies x by a polynomial of x xᵀ, and x xᵀ by its square. So only two products have the long
    # side of x, instead of two per iteration.
    square, factor = tf.matmul(x, x, transpose_b=True), tf.eye(x.shape[0])
    for _ in range(_ITERATIONS):
        polynomial = linear * tf.eye(x.shape[0]) + cubic * square + quintic * tf.matmul(square, square)
        factor = tf.matmul(polynomial, factor)
        square = tf.matmul(tf.matmul(polynomial, square), polynomial)
    x = tf.matmul(factor, x)
    return tf.transpose(x) if tall else x
