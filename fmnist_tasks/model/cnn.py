"""The architecture: three stages of convolution and pooling, residual blocks, dropout and a dense output.

Built-in Keras layers only, float32, each with a name of its own: automatic names differ from build to build.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.settings import Profile

FEATURES = "features"  # the layer whose output describes an image, (N, 128)
LOGITS = "logits"
PROBABILITIES = "probabilities"


def build(
    profile: Profile,
    classes: int,
    l2: float = 0.0,
    normalisation: type[layers.BatchNormalization] = layers.BatchNormalization,
) -> keras.Model:
    """An untrained network from raw pixels 0..255, (N, 28, 28, 1), to logits, (N, classes), both float32.

    `l2` is the factor of the L2 penalty on every kernel, `normalisation` the kind of layer that normalises; weights
    come from Keras's global seed.
    """
    penalty = keras.regularizers.L2(l2) if l2 else None

    def convolution(x, filters: int, name: str):  # type: ignore[no-untyped-def]
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
            name=f"{name}_convolution",
        )(x)
        x = normalisation(momentum=0.9, name=f"{name}_normalisation")(x)
        return layers.ReLU(name=name)(x)

    def residual(x, filters: int, name: str):  # type: ignore[no-untyped-def]
        return layers.Add(name=f"{name}_sum")([x, convolution(x, filters, name)])

    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = layers.Rescaling(1 / 255, name="scaling")(image)  # (N, 28, 28, 1) in 0..1
    x = convolution(x, 32, "stage1")
    x = layers.MaxPooling2D(name="stage1_pool")(x)  # (N, 14, 14, 32)
    x = convolution(x, 64, "stage2")
    x = residual(x, 64, "stage2_residual")
    x = layers.MaxPooling2D(name="stage2_pool")(x)  # (N, 7, 7, 64)
    x = convolution(x, 128, "stage3")
    if profile.second_residual:
        x = residual(x, 128, "stage3_residual")
    x = layers.GlobalMaxPooling2D(name=FEATURES)(x)  # (N, 128)
    x = layers.Dropout(profile.dropout, name="dropout")(x)
    logits = layers.Dense(classes, kernel_regularizer=penalty, name=LOGITS)(x)
    return keras.Model(image, logits, name="classifier")


def classifier(profile: Profile, classes: int, weights: list[np.ndarray]) -> keras.Model:
    """The trained network for use: built-in layers, no penalty; raw pixels to probabilities, (N, classes)."""
    network = build(profile, classes)
    network.set_weights(weights)
    probabilities = layers.Softmax(name=PROBABILITIES)(network.output)
    return keras.Model(network.input, probabilities, name="classifier")
