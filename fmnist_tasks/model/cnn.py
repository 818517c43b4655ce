"""The architecture: four stages of convolution and pooling, residual blocks, dropout and a dense output.

For use, an image and its mirror image are looked at, and the features of both are averaged. Built-in Keras layers only,
float32, each with a name of its own: automatic names differ from build to build.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.model.normalisation import folded
from fmnist_tasks.settings import Profile

RESPONSES = ("stage2_pool", "stage3")  # of the two stages in the middle, each (N, 7, 7, filters)
PROBABILITIES = "probabilities"


def build(
    profile: Profile,
    classes: int,
    l2: float = 0.0,
    normalisation: type[layers.BatchNormalization] | None = layers.BatchNormalization,
    mirrored: bool = False,
) -> keras.Model:
    """An untrained network from raw pixels 0..255, (N, 28, 28, 1), to logits, (N, classes), both float32.

    `l2` is the factor of the L2 penalty on every kernel, `normalisation` the kind of layer that normalises; without
    one the convolutions have a bias. A `mirrored` network averages the features of an image and its mirror image.
    Weights come from Keras's global seed.
    """
    penalty = keras.regularizers.L2(l2) if l2 else None
    made: dict[str, keras.Layer] = {}

    def shared(layer: keras.Layer) -> keras.Layer:
        """The first layer of that name: an image and its mirror image go through the same ones."""
        return made.setdefault(layer.name, layer)

    def convolution(x: Any, filters: int, name: str, pool: bool = False) -> Any:
        x = shared(
            layers.Conv2D(
                filters,
                3,
                padding="same",
                use_bias=normalisation is None,
                kernel_initializer="he_normal",
                kernel_regularizer=penalty,
                name=f"{name}_convolution",
            )
        )(x)
        if pool:  # before what follows, which has a quarter of the pixels to do then
            x = shared(layers.MaxPooling2D(name=f"{name}_pool"))(x)
        if normalisation:
            x = shared(normalisation(momentum=0.9, scale=False, name=f"{name}_normalisation"))(x)
        return shared(layers.ReLU(name=name))(x)

    def residual(x: Any, filters: int, name: str) -> Any:
        return shared(layers.Add(name=f"{name}_sum"))([x, convolution(x, filters, name)])

    def described(x: Any) -> Any:
        if profile.stem:
            x = convolution(x, profile.stem, "stem")  # (N, 28, 28, stem)
        for stage, filters in enumerate(profile.filters, start=1):  # of 14 x 14, 14 x 14, 7 x 7 and 3 x 3 places
            x = convolution(x, filters, f"stage{stage}", pool=stage == 1)
            if stage in profile.residual:
                x = residual(x, filters, f"stage{stage}_residual")
            if stage in {2, 3}:
                x = shared(layers.MaxPooling2D(name=f"stage{stage}_pool"))(x)
        return shared(layers.GlobalMaxPooling2D(name="description"))(x)  # (N, filters)

    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = layers.Rescaling(1 / 255, name="scaling")(image)  # (N, 28, 28, 1) in 0..1
    views = [described(x)]
    if mirrored:
        rows = layers.Reshape((SIDE, SIDE), name="rows")(x)
        turned = layers.Dense(SIDE, use_bias=False, name="mirror")(rows)  # columns from right to left
        views.append(described(layers.Reshape((SIDE, SIDE, 1), name="mirror_image")(turned)))
    features = layers.Average(name="features")(views) if mirrored else views[0]
    features = layers.Dropout(profile.dropout, name="dropout")(features)
    logits = layers.Dense(classes, kernel_regularizer=penalty, name="logits")(features)
    network = keras.Model(image, logits, name="network")
    if mirrored:
        network.get_layer("mirror").set_weights([np.eye(SIDE)[::-1]])
    return network


def first_convolution(network: keras.Model) -> keras.Layer:
    """The layer that sees pixels."""
    return next(layer for layer in network.layers if isinstance(layer, layers.Conv2D))


def take_weights(target: keras.Model, source: keras.Model) -> None:
    """Give each layer that both have, by name, the weights that it has in the source."""
    known = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.weights and layer.name in known:
            layer.set_weights(known[layer.name].get_weights())


def trained(profile: Profile, classes: int, network: keras.Model) -> keras.Model:
    """The trained network as a classifier that fine-tuning can take up: raw pixels to probabilities, (N, classes)."""
    plain = build(profile, classes, mirrored=True)
    take_weights(plain, network)
    return _classifier(plain)


def published(profile: Profile, classes: int, classifier: keras.Model, temperature: float) -> keras.Model:
    """The classifier for use, with the normalisations folded into convolutions and the logits divided by a temperature.

    Its answers are the same, up to rounding; its probabilities are those that the temperature makes of them.
    """
    network = build(profile, classes, normalisation=None, mirrored=True)
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D):
            (kernel,) = classifier.get_layer(layer.name).get_weights()
            after = classifier.get_layer(layer.name.replace("_convolution", "_normalisation"))
            layer.set_weights(folded(kernel, after))
    logits = classifier.get_layer("logits").get_weights()
    network.get_layer("logits").set_weights([weights / temperature for weights in logits])
    return _classifier(network)


def _classifier(network: keras.Model) -> keras.Model:
    probabilities = layers.Softmax(name=PROBABILITIES)(network.output)
    return keras.Model(network.input, probabilities, name="classifier")
