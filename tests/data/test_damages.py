"""Each kind of damage on the real images is caught under its own name, and clean draws raise no alarm.

Damages of whole files, which end in an error before any image is looked at, are in `test_sources`, `test_idx` and
`test_incoming`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fmnist_tasks.data.checks import Findings, Sample, check_samples
from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.settings import Settings

CLASSES = 10
DRAWS, DRAWN = 20, 500  # clean batches, and images of each
KEPT = 60_000 - DRAWS * DRAWN  # training images that stay the reference

Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    settings = Settings.from_environment()
    return load_base(read_declaration(settings.dataset), settings)[0]


@pytest.fixture(scope="module")
def parts(real: dict[str, np.ndarray]) -> tuple[Sample, Sample, Images]:
    """Training and test part, and the images that are in neither."""
    order = np.random.default_rng(11).permutation(60_000)
    images, labels = real["train_images"][order], real["train_labels"][order]
    training = Sample("training", images[:KEPT], labels[:KEPT], KEPT)
    return training, Sample("test", real["test_images"], real["test_labels"], 10_000), (images[KEPT:], labels[KEPT:])


def inverted(images: np.ndarray, labels: np.ndarray) -> Images:
    return 255 - images, labels


def some(share: float, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], Images]:
    def damage(images: np.ndarray, labels: np.ndarray) -> Images:
        images = images.copy()
        images[: int(share * len(images))] = change(images[: int(share * len(images))])
        return images, labels

    return damage


def swapped(images: np.ndarray, labels: np.ndarray) -> Images:
    """5 % of the trousers are called dresses, and as many dresses trousers."""
    labels = labels.copy()
    for label, other in ((1, 3), (3, 1)):
        members = np.flatnonzero(labels == label)
        labels[members[: len(members) // 20]] = other + 100
    return images, np.where(labels >= 100, labels - 100, labels).astype(np.uint8)


def digits(images: np.ndarray, labels: np.ndarray) -> Images:
    pictures = load_digits()
    enlarged = np.pad(np.kron(pictures.images, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    return np.clip(enlarged * 16, 0, 255).astype(np.uint8), pictures.target.astype(np.uint8)


def with_pixel(value: float, dtype: type) -> Callable[[np.ndarray, np.ndarray], Images]:
    def damage(images: np.ndarray, labels: np.ndarray) -> Images:
        images = images.astype(dtype)
        images[7, 3, 3] = value
        return images, labels

    return damage


def repeated(images: np.ndarray, labels: np.ndarray) -> Images:
    return np.concatenate([images, images[:20]]), np.concatenate([labels, labels[:20]])


DAMAGES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Images], str]] = {
    "wrong height": (lambda images, labels: (images[:, 1:], labels), "height"),
    "wrong width": (lambda images, labels: (images[:, :, 1:], labels), "width"),
    "floats scaled to 0..1": (lambda images, labels: ((images / 255).astype(np.float32), labels), "pixel range"),
    "a value above 255": (with_pixel(256, np.int32), "brightest pixel"),
    "a value below 0": (with_pixel(-1, np.int32), "darkest pixel"),
    "NaN": (with_pixel(np.nan, np.float32), "missing pixels"),
    "a label out of range": (lambda images, labels: (images, np.where(labels == 3, 10, labels)), "labels"),
    "duplicates": (repeated, "duplicates"),
    "swapped labels": (swapped, "swapped labels"),
    "blank images": (some(0.02, np.zeros_like), "blank images"),
    "saturated images": (some(0.02, lambda images: np.maximum(images, 250)), "extreme images"),
    "inverted brightness": (inverted, "inverted brightness"),
    "some inverted": (some(0.02, lambda images: 255 - images), "extreme images"),
    "another kind of pictures": (digits, "kind of images"),
}


@pytest.fixture(scope="module")
def found(parts: tuple[Sample, Sample, Images]) -> dict[str, Findings]:
    """Clean draws, and each damage done to all that is drawn, in one go."""
    training, test, (images, labels) = parts
    batches = [Sample(f"clean {number}", images[number::DRAWS], labels[number::DRAWS], None) for number in range(DRAWS)]
    batches += [Sample(name, *damage(images, labels), None) for name, (damage, _) in DAMAGES.items()]
    batches.append(Sample("of the test split", test.images[:100], test.labels[:100], None))
    batches.append(Sample("of the training split", training.images[:100], training.labels[:100], None))
    return check_samples(training, test, batches, CLASSES)[0]


def failed(findings: Findings) -> set[str]:
    return {check.name for check in findings.checks if not check.passed}


@pytest.mark.integration
def test_the_real_dataset_and_clean_draws_raise_no_alarm(found: dict[str, Findings]) -> None:
    clean = [f"clean {number}" for number in range(DRAWS)]
    assert {name: failed(found[name]) for name in ("training", "test", *clean) if failed(found[name])} == {}
    drifts = [found[name].drift for name in clean]
    assert max(drifts) < 0.1


@pytest.mark.integration
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_caught_under_its_name(found: dict[str, Findings], damage: str) -> None:
    assert DAMAGES[damage][1] in failed(found[damage])


@pytest.mark.integration
def test_images_that_are_there_already_are_caught(found: dict[str, Findings]) -> None:
    assert failed(found["of the test split"]) == {"test images"}
    assert failed(found["of the training split"]) == {"duplicates"}


@pytest.mark.integration
def test_swapped_labels_are_pointed_at(found: dict[str, Findings], parts: tuple[Sample, Sample, Images]) -> None:
    pairs = {(pair.label, pair.looks_like): pair for pair in found["swapped labels"].pairs}
    assert set(pairs) == {(1, 3), (3, 1)}
    _, labels = parts[2]
    _, wrong = swapped(*parts[2])
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
def test_the_base_dataset_needs_every_class_in_balance(
    parts: tuple[Sample, Sample, Images], change: Callable[[np.ndarray], np.ndarray], name: str
) -> None:
    _, test, (images, labels) = parts
    training = Sample("training", images, change(labels).astype(np.uint8), len(images))
    assert name in failed(check_samples(training, test, [], CLASSES)[0]["training"])
