"""A probe: a small dense network on the features of one that stays as it is, telling one kind of input from another.

Linear probes of trained networks: Alain and Bengio 2016, arXiv:1610.01644; this one has a hidden layer.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

_EPOCHS = 16
_BATCH = 256
_RATE = 1e-3  # of Adam, at the beginning
_DROPOUT = 0.05
_LEAST_DEVIATION = np.float32(0.3)  # by which a feature is divided, as a share of the mean one
_SMOOTHING = 0.05  # of the labels: logits stay small, so that a kind never seen is not mistaken with great certainty

Weights = tuple[np.ndarray, np.ndarray]  # kernel (inputs, outputs) and bias (outputs,) of a dense layer


def fitted(features: np.ndarray, wanted: np.ndarray, hidden: int) -> list[Weights]:
    """Weights of a hidden layer with ReLU and of one that gives the logit of `wanted`, for features as they are.

    `features`, float32 (N, F), are scaled in place; `wanted` (N,) is true or false. Features on a much smaller
    scale than most count for less.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # What hardly varies here would be blown up in an input that is unlike all of these, and decide alone.
    deviation = np.maximum(deviation, _LEAST_DEVIATION * deviation.mean()) + np.float32(1e-6)
    features -= mean
    features /= deviation
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input(features.shape[1:]),
            layers.Dropout(_DROPOUT, noise_shape=(1, None)),  # of a whole batch: each of its own takes long
            layers.Dense(hidden, "relu"),
            layers.Dropout(_DROPOUT),
            layers.Dense(1),
        ]
    )
    size = min(_BATCH, len(features))
    steps = len(features) // size
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_RATE, _EPOCHS * steps))
    variables = network.trainable_variables
    optimizer.build(variables)
    labels = (wanted * (1 - _SMOOTHING) + _SMOOTHING / 2).astype(np.float32)[:, None]

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, network(inputs, training=True))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, variables), variables)

    random = np.random.default_rng(0)
    for _ in range(_EPOCHS):
        # Not by Keras's `fit` or `train_on_batch`, which take longer between steps than these take.
        for rows in random.permutation(len(features))[: steps * size].reshape(steps, size):
            step(features[rows], labels[rows])
    (kernel, bias), last = (layer.get_weights() for layer in network.layers if layer.weights)
    kernel /= deviation[:, None]
    return [(kernel, bias - mean @ kernel), last]
