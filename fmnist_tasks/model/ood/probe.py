"""A probe: a small dense network on the features of a trained network, which does not change.

Linear probes of trained networks: Alain and Bengio 2016, arXiv:1610.01644; this one has a hidden layer.
"""

from __future__ import annotations

import numpy as np

from fmnist_tasks.model.libraries import keras, tf

_EPOCHS = 16
_BATCH = 256
_LEARNING_RATE = 1e-3  # of Adam, initial
_DROPOUT = 0.05
_MIN_DEVIATION = np.float32(0.3)  # divisor of a feature, as a share of the mean standard deviation
_SMOOTHING = 0.05  # of the labels: it keeps logits small, so the probe is less confident about unseen families

Weights = tuple[np.ndarray, np.ndarray]  # kernel (inputs, outputs) and bias (outputs,) of a dense layer


def fit_probe(features: np.ndarray, targets: np.ndarray, hidden: int) -> list[Weights]:
    """Fit a probe with one hidden layer (ReLU) to features (N, F), float32, and targets (N,), bool.

    Returns the weights of both layers, for unscaled features; the output is the logit of the target. Scales `features`
    in place. Features with a much smaller scale than most have less influence.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # Otherwise a feature that hardly varies here could decide alone for an input that is unlike all of these.
    deviation = np.maximum(deviation, _MIN_DEVIATION * deviation.mean()) + np.float32(1e-6)
    features -= mean
    features /= deviation
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input(features.shape[1:]),
            keras.layers.Dropout(_DROPOUT, noise_shape=(1, None)),  # one mask per batch: one per row takes longer
            keras.layers.Dense(hidden, "relu"),
            keras.layers.Dropout(_DROPOUT),
            keras.layers.Dense(1),
        ]
    )
    size = min(_BATCH, len(features))
    steps = len(features) // size
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, _EPOCHS * steps))
    variables = network.trainable_variables
    optimizer.build(variables)
    labels = (targets * (1 - _SMOOTHING) + _SMOOTHING / 2).astype(np.float32)[:, None]

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: tf.Tensor, smoothed: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sigmoid_cross_entropy_with_logits(smoothed, network(inputs, training=True))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, variables), variables)

    random = np.random.default_rng(0)
    for _ in range(_EPOCHS):
        # Keras's `fit` and `train_on_batch` take longer between steps than these steps take.
        for rows in random.permutation(len(features))[: steps * size].reshape(steps, size):
            step(features[rows], labels[rows])
    (kernel, bias), last = (layer.get_weights() for layer in network.layers if layer.weights)
    kernel /= deviation[:, None]
    return [(kernel, bias - mean @ kernel), last]
