"""Out-of-distribution (OOD) detection, as a second output of the released model.

The released model has two outputs. `probabilities` (N, classes) come from the logits. `ood_score` (N, 1), higher for
images less like the training data, is the logit of a probe on the feature maps of the two middle stages. The probe
learns to separate training images and, if a flip preserves the label, their horizontal flips from the OOD images of
`families.TRAINING_FAMILIES` (outlier exposure: Hendrycks et al. 2019, arXiv:1812.04606). An image is out of
distribution if its score is above the threshold, which accepts 99% of the validation images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmnist_tasks.data.shards import ShardedImages
from fmnist_tasks.model.cnn import FEATURE_MAPS
from fmnist_tasks.model.h5 import predict, predict_outputs
from fmnist_tasks.model.libraries import keras
from fmnist_tasks.model.ood.families import TRAINING_FAMILIES, list_families, make_ood_images
from fmnist_tasks.model.ood.probe import fit_probe
from fmnist_tasks.schemas.data import DatasetProperties
from fmnist_tasks.schemas.evaluation import Example

_TPR = 0.99  # share of the validation images that the threshold accepts
_MAX_TRAINING_IMAGES = 32_000  # that the probe is fitted on, for images of up to `_USUAL_PIXELS`
_MAX_OOD_IMAGES = 6_000  # of each set that the probe is fitted on, likewise
_USUAL_PIXELS = 32 * 32  # of larger images, fewer are used, so that their features take no more memory
_SETS = {"scribbles": 4}  # sets of a family; others have one. Scribbles resemble digits, which the probe never sees
_CELL = 2  # side, in pixels, of the cells that features are averaged over for fitting
_HIDDEN = 48  # units of the probe: with more, its weights exceed the processor's cache, and latency increases


def add_ood_head(classifier: keras.Model, training: ShardedImages, dataset: DatasetProperties) -> keras.Model:
    """Add the second output, `ood_score` (N, 1), float32, to a classifier of the dataset."""
    image = classifier.input
    maps = [classifier.get_layer(name).output for name in FEATURE_MAPS]
    features = keras.layers.Concatenate(name="feature_maps")(maps)  # (N, H, W, F)
    cells = keras.layers.AveragePooling2D(_CELL, padding="same")(features)
    images, is_ood = _make_training_images(training, dataset)
    (inputs,) = predict_outputs(keras.Model(image, keras.layers.Flatten()(cells)), images)
    (kernel, bias), last = fit_probe(inputs, is_ood, _HIDDEN)

    probe, score = keras.layers.Dense(_HIDDEN, name="probe"), keras.layers.Dense(1, name="ood_score")
    pixels = keras.layers.Reshape((-1,), name="pixels")(features)
    second = score(keras.layers.ReLU(name="probe_relu")(probe(pixels)))
    probe.set_weights([expand_pooled_kernel(kernel, features.shape[1:3]), bias])
    score.set_weights(last)
    return keras.Model(image, [classifier.output, second], name="classifier")


def expand_pooled_kernel(kernel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Expand a kernel (cells * F, hidden), float32, of average-pooled features to all pixels, (H * W * F, hidden).

    Both give the same results. For one image, a dense layer on all pixels is faster than pooling and a smaller layer.
    """
    pixels = np.eye(shape[0] * shape[1], dtype=np.float32)  # one image for each pixel
    pooled = keras.layers.AveragePooling2D(_CELL, padding="same")(pixels.reshape(-1, *shape, 1))
    share = np.asarray(pooled).reshape(len(pixels), -1)  # of each cell's mean that comes from each pixel
    hidden = kernel.shape[-1]
    expanded: np.ndarray = np.tensordot(share, kernel.reshape(share.shape[1], -1, hidden), 1).reshape(-1, hidden)
    return expanded


def choose_threshold(ood_scores: np.ndarray) -> float:
    """The `ood_threshold`: the quantile of the OOD scores (N,), float32, of validation images that accepts 99%."""
    return float(np.quantile(ood_scores, _TPR))


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, with images and true classes or OOD families."""

    images: np.ndarray  # uint8 (N, H, W) or (N, H, W, C)
    truth: list[str]
    probabilities: np.ndarray  # (N, classes), float32
    ood_scores: np.ndarray  # (N,), float32

    @classmethod
    def of(cls, model: keras.Model, images: np.ndarray, truth: list[str]) -> Predictions:
        """The model's predictions for images (N, H, W), uint8."""
        return cls(images, truth, *predict(model, images))


def pick_examples(
    test: Predictions, families: list[Predictions], dataset: DatasetProperties, threshold: float
) -> tuple[list[Example], np.ndarray]:
    """Pick two examples of predictions of each class and of each OOD family, with images, uint8 (N, …)."""
    classes = dataset.classes
    first: dict[str, list[int]] = {}
    for index, truth in enumerate(test.truth):
        if len(indices := first.setdefault(truth, [])) < 2:
            indices.append(index)
    picked = [(test, index) for name in classes for index in first.get(name, [])]
    picked += [(family, index) for family in families for index in range(2)]
    examples = [
        Example(
            truth=group.truth[index],
            answer=choose_label(group.probabilities[index], float(group.ood_scores[index]), dataset, threshold),
            predicted_class=classes[int(group.probabilities[index].argmax())],
            probability=float(group.probabilities[index].max()),
            ood_score=float(group.ood_scores[index]),
            in_distribution=group is test,
        )
        for group, index in picked
    ]
    return examples, np.stack([group.images[index] for group, index in picked])


def choose_label(probabilities: np.ndarray, ood_score: float, dataset: DatasetProperties, threshold: float) -> str:
    """The label of an image, from probabilities (classes,), float32: a class, or the OOD label above the threshold."""
    return dataset.classes[int(probabilities.argmax())] if ood_score <= threshold else dataset.ood_label


def _make_training_images(training: ShardedImages, dataset: DatasetProperties) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, …) that the probe is fitted on, and which of them are OOD, (N,), bool.

    They are images of the training split, the same ones flipped if that preserves the label, and OOD images.
    """
    factor = min(1, _USUAL_PIXELS / (dataset.image_format.height * dataset.image_format.width))
    count, ood_count = round(factor * _MAX_TRAINING_IMAGES), round(factor * _MAX_OOD_IMAGES)
    images = training.read_images(np.random.default_rng(0).permutation(len(training))[:count])
    families = [
        make_ood_images(family, images, ood_count, seed)
        for family in list_families(dataset)
        if family in TRAINING_FAMILIES
        for seed in range(_SETS.get(family, 1))
    ]
    real = [images, images[:, :, ::-1]] if dataset.image_format.horizontal_flip else [images]
    all_images = np.concatenate([*real, *families])
    return all_images, np.arange(len(all_images)) >= len(real) * len(images)
