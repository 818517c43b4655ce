"""What is not clothing: how like the training images an image is, as the network's stages respond to it.

The published model has two outputs. `probabilities` (N, classes) come from the logits; `familiarity` (N, 1), the
greater the more like clothing, adds up two views of the stages' responses:

* the largest cosine similarity of their mean responses to prototypes, the k-means centres of those to training images;
  1 is most alike (nearest-neighbour distance in feature space: Sun et al. 2022, arXiv:2204.06507);
* a probe of the responses at each place, fitted to tell training images and their mirror images from the families of
  fake ones in `fakes.SHOWN` (outlier exposure: Hendrycks et al. 2019, arXiv:1812.04606).

The probe knows the fakes that look like clothing, the prototypes those that look like nothing seen so far. An image
below the threshold, which lets 95 % of the validation images through, is called novel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.cluster import MiniBatchKMeans

from fmnist_tasks.model import probe
from fmnist_tasks.model.cnn import STAGES
from fmnist_tasks.model.fakes import SHOWN, fake_images
from fmnist_tasks.model.h5 import outputs, predict

NOT_CLOTHING = "not clothing"
LET_THROUGH = 0.95  # share of real validation images that are not called novel
_SHOWN = 32_000  # training images at most that show what is clothing
_FAKES = 6_000  # images at most of each family that show what is not
_PROTOTYPES = 500
_HIDDEN = 256  # units of the probe
_LOGIT = 1 / 20  # what the probe's logit counts, where a cosine counts 1


def publishable(classifier: keras.Model, train_images: np.ndarray) -> keras.Model:
    """The model to publish: the classifier with a second output, its familiarity with an image."""
    image = classifier.input
    direction, responses = _responses(classifier)
    shown, clothing = _shown(train_images)
    directions, features = outputs(keras.Model(image, [direction, responses]), shown)
    prototypes = _prototypes(directions[clothing])  # (P, filters of all stages)
    hidden, last = probe.fitted(features, clothing, _HIDDEN)

    similarity = layers.Dense(len(prototypes), use_bias=False, name="prototypes")
    similarities = layers.Reshape((len(prototypes), 1), name="similarities")(similarity(direction))
    nearest = layers.GlobalMaxPooling1D(name="nearest")(similarities)  # (N, 1)
    probed, weighed = layers.Dense(_HIDDEN, name="probe"), layers.Dense(1, name="probe_logit")
    logit = weighed(layers.ReLU(name="probe_rectified")(probed(responses)))  # (N, 1)
    familiarity = layers.Add(name="familiarity")([nearest, logit])
    similarity.set_weights([prototypes.T])
    probed.set_weights(hidden)
    weighed.set_weights([weights * _LOGIT for weights in last])
    return keras.Model(image, [classifier.output, familiarity], name="classifier")


def threshold(familiarity: np.ndarray) -> float:
    """The familiarity (of real validation images, (N,)) below which an image is called novel."""
    return float(np.quantile(familiarity, 1 - LET_THROUGH))


@dataclass(frozen=True)
class Group:
    """Images (N, 28, 28), what each truly shows, and the model's two outputs for them."""

    images: np.ndarray
    truth: list[str]
    probabilities: np.ndarray  # (N, classes)
    familiarity: np.ndarray  # (N,)

    @classmethod
    def predicted(cls, model: keras.Model, images: np.ndarray, truth: list[str]) -> Group:
        """Ask the model about the images."""
        return cls(images, truth, *predict(model, images))


def examples(
    real: Group, fakes: list[Group], classes: list[str], bound: float
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows for the table of real and fake images, two a class and two a fake family, and these images."""
    first: dict[str, list[int]] = {}
    for index, truth in enumerate(real.truth):
        if len(members := first.setdefault(truth, [])) < 2:
            members.append(index)
    picked = [(real, index) for name in classes for index in first.get(name, [])]
    picked += [(fake, index) for fake in fakes for index in range(2)]
    rows = [
        {
            "truth": group.truth[index],
            "answer": answer(group.probabilities[index], float(group.familiarity[index]), classes, bound),
            "class": classes[int(group.probabilities[index].argmax())],
            "probability": float(group.probabilities[index].max()),
            "familiarity": float(group.familiarity[index]),
            "real": group is real,
        }
        for group, index in picked
    ]
    return rows, np.stack([group.images[index] for group, index in picked])


def answer(probabilities: np.ndarray, familiarity: float, classes: list[str], bound: float) -> str:
    """The most probable class, or "not clothing" for an image whose familiarity lies below the bound."""
    return classes[int(probabilities.argmax())] if familiarity >= bound else NOT_CLOTHING


def _responses(classifier: keras.Model) -> tuple[Any, Any]:
    """How the stages respond to an image: the direction of all means, (N, D), and that with the layouts, (N, F)."""
    means, layouts = [], []
    for name, squares in zip(STAGES, (None, 4, 2), strict=True):  # so many pixels of a side are one place of a layout
        stage = classifier.get_layer(name).output  # (N, H, W, filters)
        means.append(layers.GlobalAveragePooling2D(name=f"{name}_mean")(stage))
        if squares:
            places = layers.AveragePooling2D(squares, padding="same", name=f"{name}_places")(stage)
            listed = layers.Reshape((-1,), name=f"{name}_listed")(places)
            layouts.append(layers.UnitNormalization(name=f"{name}_layout")(listed))
    direction = layers.UnitNormalization(name="direction")(layers.Concatenate(name="means")(means))
    return direction, layers.Concatenate(name="responses")([direction, *layouts])


def _shown(train_images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28), training images and their mirror images and then fake ones, and which are clothing, (N,)."""
    real = train_images[np.random.default_rng(0).permutation(len(train_images))[:_SHOWN]]
    fakes = [fake_images(family, real, _FAKES, seed=0) for family in SHOWN]
    images = np.concatenate([real, real[:, :, ::-1], *fakes])
    return images, np.arange(len(images)) < 2 * len(real)


def _prototypes(directions: np.ndarray) -> np.ndarray:
    count = min(_PROTOTYPES, len(directions))
    clusters = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=2048, max_iter=20).fit(directions)
    return _unit(clusters.cluster_centers_).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return unit
