"""Each kind of damage to the real images fails its own check, and good batches pass.

Damaged files, which raise an error before any image is checked, are in `test_sources`, `test_idx` and `test_incoming`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fmnist_tasks.data.checks import Sample, SampleResult, check_samples
from fmnist_tasks.data.declaration import Declaration, read_declaration
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.settings import Settings

POLICY = read_policy({}).data
BATCHES, BATCH_SIZE = 20, 500
REFERENCE_SIZE = 60_000 - BATCHES * BATCH_SIZE  # the other training images, with which the batches are compared

Images = tuple[np.ndarray, np.ndarray]
Damage = Callable[[np.ndarray, np.ndarray], Images]


@pytest.fixture(scope="module")
def declaration() -> Declaration:
    return read_declaration(Settings.from_environment().dataset)


@pytest.fixture(scope="module")
def dataset(declaration: Declaration) -> dict[str, np.ndarray]:
    return load_base(declaration, Settings.from_environment())[0]


@pytest.fixture(scope="module")
def splits(dataset: dict[str, np.ndarray]) -> tuple[Sample, Sample, Images]:
    """Return the training split, the test split, and the images of the batches."""
    order = np.random.default_rng(11).permutation(60_000)
    images, labels = dataset["train_images"][order], dataset["train_labels"][order]
    training = Sample("training", images[:REFERENCE_SIZE], labels[:REFERENCE_SIZE], REFERENCE_SIZE)
    test = Sample("test", dataset["test_images"], dataset["test_labels"], 10_000)
    return training, test, (images[REFERENCE_SIZE:], labels[REFERENCE_SIZE:])


def invert(images: np.ndarray, labels: np.ndarray) -> Images:
    return 255 - images, labels


def change_share(share: float, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(images: np.ndarray, labels: np.ndarray) -> Images:
        images = images.copy()
        images[: int(share * len(images))] = change(images[: int(share * len(images))])
        return images, labels

    return damage


def swap_labels(images: np.ndarray, labels: np.ndarray) -> Images:
    """Label 5% of the trousers as dresses, and as many dresses as trousers."""
    labels = labels.copy()
    for label, other in ((1, 3), (3, 1)):
        members = np.flatnonzero(labels == label)
        labels[members[: len(members) // 20]] = other + 100
    return images, np.where(labels >= 100, labels - 100, labels).astype(np.uint8)


def replace_by_digits(images: np.ndarray, labels: np.ndarray) -> Images:
    digits = load_digits()
    enlarged = np.pad(np.kron(digits.images, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    return np.clip(enlarged * 16, 0, 255).astype(np.uint8), digits.target.astype(np.uint8)


def set_pixel(value: float, dtype: type) -> Damage:
    def damage(images: np.ndarray, labels: np.ndarray) -> Images:
        images = images.astype(dtype)
        images[7, 3, 3] = value
        return images, labels

    return damage


def repeat_images(images: np.ndarray, labels: np.ndarray) -> Images:
    return np.concatenate([images, images[:20]]), np.concatenate([labels, labels[:20]])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "wrong height": (lambda images, labels: (images[:, 1:], labels), "height"),
    "wrong width": (lambda images, labels: (images[:, :, 1:], labels), "width"),
    "floats scaled to 0..1": (lambda images, labels: ((images / 255).astype(np.float32), labels), "pixel range"),
    "a value above 255": (set_pixel(256, np.int32), "maximum pixel"),
    "a value below 0": (set_pixel(-1, np.int32), "minimum pixel"),
    "NaN": (set_pixel(np.nan, np.float32), "missing values"),
    "a label out of range": (lambda images, labels: (images, np.where(labels == 3, 10, labels)), "labels"),
    "duplicates": (repeat_images, "duplicates"),
    "swapped labels": (swap_labels, "label errors"),
    "blank images": (change_share(0.02, np.zeros_like), "blank images"),
    "saturated images": (change_share(0.02, lambda images: np.maximum(images, 250)), "outliers"),
    "inverted brightness": (invert, "inverted brightness"),
    "some inverted": (change_share(0.02, lambda images: 255 - images), "outliers"),
    "other images": (replace_by_digits, "image distribution"),
}


@pytest.fixture(scope="module")
def findings(splits: tuple[Sample, Sample, Images], declaration: Declaration) -> dict[str, SampleResult]:
    """Return the findings of good batches, their images with each damage, and images of the base dataset."""
    training, test, (images, labels) = splits
    batches = [
        Sample(f"good {number}", images[number::BATCHES], labels[number::BATCHES], None) for number in range(BATCHES)
    ]
    batches += [Sample(name, *damage(images, labels), None) for name, (damage, _) in DAMAGES.items()]
    batches.append(Sample("of the test split", test.images[:100], test.labels[:100], None))
    batches.append(Sample("of the training split", training.images[:100], training.labels[:100], None))
    return check_samples(training, test, batches, declaration, POLICY)[0]


def list_failures(findings: SampleResult) -> set[str]:
    return {check.name for check in findings.checks if not check.has_passed}


@pytest.mark.integration
def test_the_real_dataset_and_good_batches_pass(findings: dict[str, SampleResult]) -> None:
    good = [f"good {number}" for number in range(BATCHES)]
    failures = {name: list_failures(findings[name]) for name in ("training", "test", *good)}
    assert {name for name, checks in failures.items() if checks} == set()
    drifts = [findings[name].drift for name in good]
    assert max(drift for drift in drifts if drift is not None) < 0.1
    assert None not in drifts


@pytest.mark.integration
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_fails_its_check(findings: dict[str, SampleResult], damage: str) -> None:
    assert DAMAGES[damage][1] in list_failures(findings[damage])


@pytest.mark.integration
def test_images_of_the_base_dataset_are_detected(findings: dict[str, SampleResult]) -> None:
    assert list_failures(findings["of the test split"]) == {"train-test overlap"}
    assert list_failures(findings["of the training split"]) == {"duplicates"}


@pytest.mark.integration
def test_swapped_labels_are_located(findings: dict[str, SampleResult], splits: tuple[Sample, Sample, Images]) -> None:
    pairs = {(pair.label, pair.looks_like): pair for pair in findings["swapped labels"].label_errors}
    assert set(pairs) == {(1, 3), (3, 1)}
    (check,) = (check for check in findings["swapped labels"].checks if check.name == "label errors")
    assert re.search(r"for example label 1, looks like 3, share 0\.\d+, expected share 0\.\d+, p value ", check.message)
    _, labels = splits[2]
    _, wrong = swap_labels(*splits[2])
    for pair in pairs.values():
        worst = pair.images[:20]
        assert (wrong[worst] != labels[worst]).mean() >= 0.8


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda labels: np.where(labels == 3, 4, labels), "missing class"),
        (lambda labels: np.where((labels == 3) & (np.arange(len(labels)) % 3 > 0), 4, labels), "class balance"),
    ],
)
def test_the_base_dataset_must_have_balanced_classes(
    declaration: Declaration,
    splits: tuple[Sample, Sample, Images],
    change: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> None:
    _, test, (images, labels) = splits
    training = Sample("training", images, change(labels).astype(np.uint8), len(images))
    assert name in list_failures(check_samples(training, test, [], declaration, POLICY)[0]["training"])
