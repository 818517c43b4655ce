"""What is not clothing: how like the training images an image is, as the network's middle stages respond to it.

The published model has two outputs. `probabilities` (N, classes) come from the logits; `familiarity` (N, 1), the
greater the more like clothing, is the logit of a probe of the responses at each place, fitted to tell training images
and their mirror images from the families of fake ones in `fakes.SHOWN` (outlier exposure: Hendrycks et al. 2019,
arXiv:1812.04606). An image below the threshold, which lets 99 % of the validation images through, is called novel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from fmnist_tasks.data.shards import Training
from fmnist_tasks.model import probe
from fmnist_tasks.model.cnn import RESPONSES
from fmnist_tasks.model.fakes import SHOWN, fake_images
from fmnist_tasks.model.h5 import outputs, predict

NOT_CLOTHING = "not clothing"
LET_THROUGH = 0.99  # share of real validation images that are not called novel
_SHOWN = 32_000  # training images at most that show what is clothing
_FAKES = 6_000  # images at most of each set that shows what is not
_SETS = {"scribbles": 4}  # of a family, others have one; scribbles are nearest to digits, which are not shown
_PLACE = 2  # pixels of a side that are one place in fitting
_HIDDEN = 48  # units of the probe: with more, its weights leave the processor's cache and an image takes longer


def publishable(classifier: keras.Model, training: Training) -> keras.Model:
    """The model to publish: the classifier with a second output, its familiarity with an image."""
    image = classifier.input
    maps = [classifier.get_layer(name).output for name in RESPONSES]
    responses = layers.Concatenate(name="responses")(maps)  # (N, H, W, F)
    places = layers.AveragePooling2D(_PLACE, padding="same")(responses)
    shown, clothing = _shown(training)
    (features,) = outputs(keras.Model(image, layers.Flatten()(places)), shown)
    (kernel, bias), last = probe.fitted(features, clothing, _HIDDEN)

    probed, familiarity = layers.Dense(_HIDDEN, name="probe"), layers.Dense(1, name="familiarity")
    pixels = layers.Reshape((-1,), name="pixels")(responses)
    second = familiarity(layers.ReLU(name="probe_rectified")(probed(pixels)))
    probed.set_weights([for_pixels(kernel, responses.shape[1:3]), bias])
    familiarity.set_weights(last)
    return keras.Model(image, [classifier.output, second], name="classifier")


def for_pixels(kernel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The kernel for pixels, (H * W * F, hidden), that does to them what the given one does to their means by places.

    A dense layer on all pixels takes less time for one image than pooling and a smaller dense layer.
    """
    pixels = np.eye(shape[0] * shape[1], dtype=np.float32)  # each alone in an image
    pooled = layers.AveragePooling2D(_PLACE, padding="same")(pixels.reshape(-1, *shape, 1))
    share = np.asarray(pooled).reshape(len(pixels), -1)  # of each pixel in each place
    hidden = kernel.shape[-1]
    spread: np.ndarray = np.tensordot(share, kernel.reshape(share.shape[1], -1, hidden), 1).reshape(-1, hidden)
    return spread


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


def _shown(training: Training) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28), training images and their mirror images and then fake ones, and which are clothing, (N,)."""
    real = training.images(np.random.default_rng(0).permutation(len(training))[:_SHOWN])
    fakes = [fake_images(family, real, _FAKES, seed) for family in SHOWN for seed in range(_SETS.get(family, 1))]
    images = np.concatenate([real, real[:, :, ::-1], *fakes])
    return images, np.arange(len(images)) < 2 * len(real)
