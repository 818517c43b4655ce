"""The architecture: four stages of convolution and pooling, residual blocks, dropout and a dense output.

For inference, if a flip preserves the label, the network averages the features of an image and of its horizontal flip
(flip test-time augmentation). It has only built-in Keras layers, float32, each with a name, since automatic names
differ between builds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fmnist_tasks.model.libraries import keras
from fmnist_tasks.model.normalisation import fold_batch_norm
from fmnist_tasks.schemas.data import ImageFormat
from fmnist_tasks.settings import Profile

FEATURE_MAPS = ("stage2_pool", "stage3")  # of the two middle stages, each (N, H / 4, W / 4, filters)
PROBABILITIES = "probabilities"


def build_network(
    profile: Profile,
    classes: int,
    image_format: ImageFormat,
    l2: float = 0.0,
    normalisation: type[keras.layers.BatchNormalization] | None = keras.layers.BatchNormalization,
    flip: bool = False,
) -> keras.Model:
    """An untrained network from images (N, H, W, C), float32, pixels 0..255, to logits (N, classes), float32.

    `l2` is the factor of the L2 penalty on each kernel, `normalisation` the class of normalisation layers; without one,
    convolutions have a bias. With `flip`, the network averages the features of an image and of its horizontal flip.
    Initial weights follow from Keras's global seed.
    """
    penalty = keras.regularizers.L2(l2) if l2 else None
    shared: dict[str, keras.Layer] = {}

    def share(layer: keras.Layer) -> keras.Layer:
        """The first layer of this name, so an image and its flip use the same layers."""
        return shared.setdefault(layer.name, layer)

    def convolve(x: Any, filters: int, name: str, pool: bool = False) -> Any:
        x = share(
            keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                use_bias=normalisation is None,
                kernel_initializer="he_normal",
                kernel_regularizer=penalty,
                name=f"{name}_convolution",
            )
        )(x)
        if pool:  # first, so normalisation and ReLU have a quarter of the pixels
            x = share(keras.layers.MaxPooling2D(name=f"{name}_pool"))(x)
        if normalisation:
            x = share(normalisation(momentum=0.9, scale=False, name=f"{name}_normalisation"))(x)
        return share(keras.layers.ReLU(name=name))(x)

    def add_residual(x: Any, filters: int, name: str) -> Any:
        return share(keras.layers.Add(name=f"{name}_sum"))([x, convolve(x, filters, name)])

    def extract_features(x: Any) -> Any:
        if profile.stem:
            x = convolve(x, profile.stem, "stem")  # (N, H, W, stem)
        for stage, filters in enumerate(profile.filters, start=1):  # sides: a half, a half, a quarter, an eighth
            x = convolve(x, filters, f"stage{stage}", pool=stage == 1)
            if stage in profile.residual:
                x = add_residual(x, filters, f"stage{stage}_residual")
            if stage in {2, 3}:
                x = share(keras.layers.MaxPooling2D(name=f"stage{stage}_pool"))(x)
        return share(keras.layers.GlobalMaxPooling2D(name="description"))(x)  # (N, filters)

    height, width, channels = image_format.height, image_format.width, image_format.channels
    image = keras.Input((height, width, channels), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scaling")(image)  # in 0..1
    views = [extract_features(x)]
    if flip:
        rows = keras.layers.Reshape((height, width * channels), name="rows")(x)
        flipped = keras.layers.Dense(width * channels, use_bias=False, name="flip")(rows)  # reverses the columns
        views.append(extract_features(keras.layers.Reshape((height, width, channels), name="flipped_image")(flipped)))
    features = keras.layers.Average(name="features")(views) if flip else views[0]
    features = keras.layers.Dropout(profile.dropout, name="dropout")(features)
    logits = keras.layers.Dense(classes, kernel_regularizer=penalty, name="logits")(features)
    network = keras.Model(image, logits, name="network")
    if flip:
        network.get_layer("flip").set_weights([np.kron(np.eye(width)[::-1], np.eye(channels))])
    return network


def find_first_convolution(network: keras.Model) -> keras.Layer:
    """The first convolution, whose input is pixels."""
    return next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))


def copy_weights(target: keras.Model, source: keras.Model) -> None:
    """Copy the weights of the layers that both models have, by name, from source to target."""
    layers_by_name = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.weights and layer.name in layers_by_name:
            layer.set_weights(layers_by_name[layer.name].get_weights())


def build_classifier(profile: Profile, classes: int, image_format: ImageFormat, network: keras.Model) -> keras.Model:
    """A classifier from images (N, H, W, C) to probabilities (N, classes), float32, with the weights of a network.

    If a flip preserves the label, it averages the features of an image and of its flip. Fine-tuning can start from it.
    """
    classifier = build_network(profile, classes, image_format, flip=image_format.horizontal_flip)
    copy_weights(classifier, network)
    return _add_softmax(classifier)


def export_for_inference(
    profile: Profile, classes: int, image_format: ImageFormat, classifier: keras.Model, temperature: float
) -> keras.Model:
    """The classifier for inference: batch normalisation folded into convolutions, logits divided by the temperature.

    It predicts the same classes, up to rounding, with calibrated probabilities.
    """
    network = build_network(profile, classes, image_format, normalisation=None, flip=image_format.horizontal_flip)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            (kernel,) = classifier.get_layer(layer.name).get_weights()
            normalisation = classifier.get_layer(layer.name.replace("_convolution", "_normalisation"))
            layer.set_weights(fold_batch_norm(kernel, normalisation))
    logits = classifier.get_layer("logits").get_weights()
    network.get_layer("logits").set_weights([weights / temperature for weights in logits])
    return _add_softmax(network)


def _add_softmax(network: keras.Model) -> keras.Model:
    probabilities = keras.layers.Softmax(name=PROBABILITIES)(network.output)
    return keras.Model(network.input, probabilities, name="classifier")
