"""What is not clothing: how near an image lies to anything seen in training, as the network's stages respond to it.

The published model has two outputs. `probabilities` (N, classes) come from the logits; `familiarity` (N, 1) is the
largest cosine similarity of the stages' mean responses to prototypes, the k-means centres of those to training images;
1 is most alike. All stages are asked: the first knows shades and edges, the last garments.
Nearest-neighbour distance in feature space as a detector: Sun et al. 2022, arXiv:2204.06507. An image below the
threshold, which lets 95 % of the validation images through, is called novel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits

from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.model.cnn import STAGES
from fmnist_tasks.model.h5 import outputs, predict

NOT_CLOTHING = "not clothing"
LET_THROUGH = 0.95  # share of real validation images that are not called novel
_PROTOTYPES = 500
_SAMPLED = 10_000  # training images whose responses make the prototypes


def publishable(classifier: keras.Model, train_images: np.ndarray) -> keras.Model:
    """The model to publish: the classifier with a second output, its familiarity with an image."""
    image, responses = classifier.input, []
    for stage in STAGES:
        mean = layers.GlobalAveragePooling2D(name=f"{stage}_mean")(classifier.get_layer(stage).output)
        responses.append(layers.UnitNormalization(name=f"{stage}_direction")(mean))
    direction = layers.UnitNormalization(name="direction")(layers.Concatenate(name="responses")(responses))
    chosen = np.random.default_rng(0).permutation(len(train_images))[:_SAMPLED]
    directions = outputs(keras.Model(image, direction), train_images[chosen])[0]
    prototypes = _prototypes(directions)  # (P, filters of all stages)

    similarity = layers.Dense(len(prototypes), use_bias=False, name="prototypes")
    similarities = layers.Reshape((len(prototypes), 1), name="similarities")(similarity(direction))
    familiarity = layers.GlobalMaxPooling1D(name="familiarity")(similarities)  # (N, 1)
    similarity.set_weights([prototypes.T])
    return keras.Model(image, [classifier.output, familiarity], name="classifier")


def threshold(familiarity: np.ndarray) -> float:
    """The familiarity (of real validation images, (N,)) below which an image is called novel."""
    return float(np.quantile(familiarity, 1 - LET_THROUGH))


def fake_images(real: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Families of images that are no clothing, each uint8 (count, 28, 28), made from a seed and real images."""
    random = np.random.default_rng(seed)
    shape = (count, SIDE, SIDE)
    picked = real[random.permutation(len(real))[:count]]
    digits = load_digits().images  # (1797, 8, 8) in 0..16
    digits = digits[random.integers(0, len(digits), count)]
    enlarged = np.pad(np.kron(digits, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))  # (count, 28, 28)
    return {
        "uniform noise": random.integers(0, 256, shape, dtype=np.uint8),
        "Gaussian noise": np.clip(random.normal(128, 64, shape), 0, 255).astype(np.uint8),
        "one shade": np.broadcast_to(random.integers(0, 256, (count, 1, 1), dtype=np.uint8), shape).copy(),
        "permuted pixels": random.permuted(picked.reshape(len(picked), -1), axis=1).reshape(picked.shape),
        "inverted": 255 - picked,
        "digits": np.clip(enlarged * 16, 0, 255).astype(np.uint8),
    }


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
    """Rows for the table of real and fake images, two real ones a class and three a fake family, and these images."""
    first: dict[str, list[int]] = {}
    for index, truth in enumerate(real.truth):
        if len(members := first.setdefault(truth, [])) < 2:
            members.append(index)
    picked = [(real, index) for name in classes for index in first.get(name, [])]
    picked += [(fake, index) for fake in fakes for index in range(3)]
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


def _prototypes(directions: np.ndarray) -> np.ndarray:
    count = min(_PROTOTYPES, len(directions))
    clusters = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=2048, max_iter=20).fit(directions)
    return _unit(clusters.cluster_centers_).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return unit
