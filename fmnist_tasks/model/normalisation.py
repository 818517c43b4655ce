"""Batch normalisation: one fused operation in training, folded into the convolution for inference.

On a CPU, Keras computes moments and normalisation as separate operations; TensorFlow's fused kernel gives the same
result in a quarter of the time. A trained normalisation shifts each channel and scales it by a positive factor. The
kernel and bias of the previous convolution can do the same, even with max pooling in between.
"""

from __future__ import annotations

import numpy as np

from fmnist_tasks.model.libraries import keras, tf


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """The same weights and results as the built-in layer without scale, for inputs (N, H, W, C), float32."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalise; in training, by the statistics of the batch, which also update the moving ones."""
        if not training:
            return super().call(inputs, training=False)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, tf.ones_like(self.beta), self.beta, epsilon=self.epsilon, is_training=True
        )
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
        self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return outputs


def fold_batch_norm(
    kernel: np.ndarray, normalisation: keras.layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a normalisation into the kernel (H, W, C, F), float32, before it; returns kernel and bias (F,), float32."""
    beta, mean, variance = normalisation.get_weights()
    scale = 1 / np.sqrt(variance + normalisation.epsilon)
    return kernel * scale, beta - mean * scale
