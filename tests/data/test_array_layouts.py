"""Arrays in the layouts that people use: converted without loss, or refused with what to do."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from fmnist_tasks.data.array_layouts import convert_images, convert_labels, find_pairs, infer_shape
from fmnist_tasks.errors import DataError

GREY = np.random.default_rng(0).integers(0, 256, (5, 8, 9), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 8, 9, 3), np.uint8)
CLASSES = ["bag", "coat", "shirt"]


@pytest.mark.parametrize(
    "images",
    [
        GREY,
        GREY[..., None],
        GREY.reshape(5, 72),
        np.asfortranarray(GREY),
        GREY.astype(np.int64),
        GREY.astype(">u2"),
        GREY[::-1][::-1],
    ],
    ids=["plain", "channel axis", "flat", "Fortran order", "int64", "big-endian", "strided"],
)
def test_images_are_converted_without_loss(images: np.ndarray) -> None:
    converted = convert_images(images, (8, 9))
    assert np.array_equal(converted, GREY)
    assert (converted.dtype, converted.flags["C_CONTIGUOUS"]) == (np.uint8, True)
    assert np.array_equal(convert_images(COLOUR, (8, 9, 3)), COLOUR)


@pytest.mark.parametrize(
    ("images", "expected", "fault"),
    [
        (GREY / 255, (8, 9), r"images are float64; save the original pixels as uint8, 0 to 255"),
        (GREY.astype(np.float16), (8, 9), r"images are float16; save the original pixels"),
        (GREY > 9, (8, 9), r"images are bool, expected uint8"),
        (GREY.astype(str), (8, 9), r"images are <U3, expected uint8"),
        (GREY.astype(np.int16) - 1, (8, 9), r"images have values from -1 to \d+, expected 0 to 255"),
        (GREY.swapaxes(1, 2), (8, 9), r"the shape \(5, 9, 8\), expected \(N, 8, 9\) or \(N, 8, 9, 1\) or \(N, 72\)"),
        (COLOUR, (8, 9), r"the shape \(5, 8, 9, 3\), expected \(N, 8, 9\)"),
        (GREY, (8, 9, 3), r"the shape \(5, 8, 9\), expected \(N, 8, 9, 3\)"),
        (COLOUR.reshape(5, 216), (8, 9, 3), r"ordered by pixel or by channel, so save them as \(N, 8, 9, 3\)"),
        (np.moveaxis(COLOUR, -1, 1), (8, 9, 3), r"with the channels first; save numpy\.moveaxis\(images, 1, -1\)"),
        (np.moveaxis(COLOUR, 0, -1), (8, 9, 3), r"with the images last; save numpy\.moveaxis\(images, -1, 0\)"),
        (np.uint8(3), (8, 9), r"the shape \(\), expected"),
    ],
)
def test_other_images_are_refused_with_what_to_do(images: np.ndarray, expected: tuple[int, ...], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        convert_images(images, expected)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 1]),
        np.array([0, 2, 1], np.uint8),
        np.array([[0], [2], [1]], ">i2"),
        np.eye(3, dtype=np.uint8)[[0, 2, 1]],
        np.eye(3, dtype=bool)[[0, 2, 1]],
        np.array(["bag", "shirt", "coat"]),
        np.array([b"bag", b"shirt", b"coat"]),
    ],
)
def test_labels_are_converted_to_class_indices(labels: np.ndarray) -> None:
    converted = convert_labels(labels, CLASSES)
    assert (converted.dtype, converted.tolist()) == (np.int64, [0, 2, 1])


def test_text_that_names_no_class_may_be_indices() -> None:
    assert convert_labels(np.array(["0", "2"]), CLASSES).tolist() == [0, 2]
    assert convert_labels(np.array(["2", "10"]), ["2", "10"]).tolist() == [0, 1]
    decomposed = unicodedata.normalize("NFD", "Grünfink")
    assert convert_labels(np.array([decomposed]), ["Grünfink", "Star"]).tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (
            np.array([1, 2]),
            r"so are the names of the classes \(1, 2, 3, …\), so a label could be an index or a name: save",
        ),
        (np.array(["0", "0"]), "labels name unknown classes: '0'; the classes are 1, 2, 3"),
    ],
)
def test_numbers_are_refused_if_the_names_of_the_classes_are_other_numbers(labels: np.ndarray, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        convert_labels(labels, ["1", "2", "3"])


@pytest.mark.parametrize(
    ("classes", "labels", "indices"),
    [
        (["01", "02", "other"], ["01", "02"], [0, 1]),
        (["1.0", "2.0", "other"], ["1.0", "2.0"], [0, 1]),
        (["3", "5"], ["3.0", "5.0"], [0, 1]),
        (["wren", "robin"], ["1", "0"], [1, 0]),
        (["wren", "robin"], ["1.0", "0.0"], [1, 0]),
    ],
)
def test_text_is_a_name_if_a_class_has_it_and_an_index_otherwise(
    classes: list[str], labels: list[str], indices: list[int]
) -> None:
    assert convert_labels(np.array(labels), classes).tolist() == indices


def test_two_training_splits_in_a_file_are_refused() -> None:
    with pytest.raises(DataError, match="it has two training splits, images and x_train"):
        find_pairs(["images", "labels", "x_train", "y_train"])


def test_indices_of_no_class_are_left_to_the_data_checks() -> None:
    assert convert_labels(np.array([-1, 7]), CLASSES).tolist() == [-1, 7]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (np.array([0.0, 1.0]), "labels are float64, expected whole numbers"),
        (np.array([[1, 0, 0], [1, 1, 0]]), "not exactly one 1 in each row"),
        (np.array([[1, 0, 0], [0, 2, 0]]), "not exactly one 1 in each row"),
        (np.array([[0, 0, 0]]), "not exactly one 1 in each row"),
        (np.array([[1, 0]]), "labels have 2 columns, but there are 3 classes"),
        (np.zeros((2, 3, 4), int), r"labels have the shape \(2, 3, 4\)"),
        (np.array(["bag", "hat"]), "labels name unknown classes: 'hat'; the classes are bag, coat, shirt"),
        (np.array([b"\xff"]), "labels name unknown classes"),
        (np.array([1 << 63], np.uint64), "labels are larger than any class index"),
        (np.array(["2026-11-30"], "M8[D]"), r"labels are datetime64\[D\], expected whole numbers"),
    ],
)
def test_other_labels_are_refused(labels: np.ndarray, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        convert_labels(labels, CLASSES)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["images", "labels"], {None: ("images", "labels")}),
        (["X", "y", "notes"], {None: ("X", "y")}),
        (["x_train", "y_train", "x_test", "y_test"], {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}),
        (
            ["train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"],
            {
                "train": ("train_images", "train_labels"),
                "validation": ("val_images", "val_labels"),
                "test": ("test_images", "test_labels"),
            },
        ),
        (["data", "target"], {None: ("data", "target")}),
        (
            ["images", "labels", "test_images", "test_labels"],
            {"train": ("images", "labels"), "test": ("test_images", "test_labels")},
        ),
        (["arr_0", "arr_1"], {}),
        (["images"], {}),
    ],
)
def test_the_usual_names_of_arrays_are_found(names: list[str], pairs: dict) -> None:
    assert find_pairs(names) == pairs


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((9, 784), (28, 28)), ((9, 8, 10), (8, 10)), ((9, 8, 10, 1), (8, 10)), ((9, 32, 32, 3), (32, 32, 3))],
)
def test_the_shape_of_an_image_follows_from_that_of_the_array(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert infer_shape(shape) == expected


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ((9, 3072), "3072 is not a square number"),
        ((9, 3, 32, 32), "with the channels first"),
        ((9, 32, 32, 4), r"expected \(N, H, W\)"),
        ((9,), r"expected \(N, H, W\)"),
    ],
)
def test_an_ambiguous_shape_is_refused(shape: tuple[int, ...], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        infer_shape(shape)
