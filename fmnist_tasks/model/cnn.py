"""The architecture: three stages of convolution and pooling, residual blocks, dropout and a dense output.

Built-in Keras layers only, float32, each with a name of its own: automatic names differ from build to build.
"""

from __future__ import annotations

import keras
from keras import layers

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.model.normalisation import folded
from fmnist_tasks.settings import Profile

FEATURES = "features"  # the layer whose output describes an image, (N, 128)
LOGITS = "logits"
PROBABILITIES = "probabilities"


def build(
    profile: Profile,
    classes: int,
    l2: float = 0.0,
    normalisation: type[layers.BatchNormalization] | None = layers.BatchNormalization,
) -> keras.Model:
    """An untrained network from raw pixels 0..255, (N, 28, 28, 1), to logits, (N, classes), both float32.

    `l2` is the factor of the L2 penalty on every kernel, `normalisation` the kind of layer that normalises; without
    one the convolutions have a bias. Weights come from Keras's global seed.
    """
    penalty = keras.regularizers.L2(l2) if l2 else None

    def convolution(x, filters: int, name: str, pool: bool = False):  # type: ignore[no-untyped-def]
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=normalisation is None,
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
            name=f"{name}_convolution",
        )(x)
        if pool:  # before what follows, which has a quarter of the pixels to do then
            x = layers.MaxPooling2D(name=f"{name}_pool")(x)
        if normalisation:
            x = normalisation(momentum=0.9, scale=False, name=f"{name}_normalisation")(x)
        return layers.ReLU(name=name)(x)

    def residual(x, filters: int, name: str):  # type: ignore[no-untyped-def]
        return layers.Add(name=f"{name}_sum")([x, convolution(x, filters, name)])

    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = layers.Rescaling(1 / 255, name="scaling")(image)  # (N, 28, 28, 1) in 0..1
    x = convolution(x, 32, "stage1", pool=True)  # (N, 14, 14, 32)
    x = convolution(x, 64, "stage2")
    x = residual(x, 64, "stage2_residual")
    x = layers.MaxPooling2D(name="stage2_pool")(x)  # (N, 7, 7, 64)
    x = convolution(x, 128, "stage3")
    if profile.second_residual:
        x = residual(x, 128, "stage3_residual")
    x = layers.GlobalMaxPooling2D(name=FEATURES)(x)  # (N, 128)
    x = layers.Dropout(profile.dropout, name="dropout")(x)
    logits = layers.Dense(classes, kernel_regularizer=penalty, name=LOGITS)(x)
    return keras.Model(image, logits, name="network")


def trained(profile: Profile, classes: int, network: keras.Model) -> keras.Model:
    """The trained network in built-in layers, as fine-tuning takes it up: raw pixels to probabilities, (N, classes)."""
    plain = build(profile, classes)
    plain.set_weights(network.get_weights())
    return _classifier(plain)


def published(profile: Profile, classes: int, classifier: keras.Model) -> keras.Model:
    """The classifier for use: the same answers, up to rounding, with the normalisations folded into convolutions."""
    network = build(profile, classes, normalisation=None)
    for layer in network.layers:
        weights = classifier.get_layer(layer.name).get_weights()
        if isinstance(layer, layers.Conv2D):
            after = layer.name.replace("_convolution", "_normalisation")
            weights = folded(weights[0], classifier.get_layer(after))
        layer.set_weights(weights)
    return _classifier(network)


def _classifier(network: keras.Model) -> keras.Model:
    probabilities = layers.Softmax(name=PROBABILITIES)(network.output)
    return keras.Model(network.input, probabilities, name="classifier")
