"""`fmnist dataset new`: what becomes of a user's images, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.data.declaration import Declaration, load_declaration, read_declaration
from fmnist_tasks.data.labelled_sources import read_source
from fmnist_tasks.data.near_duplicates import NearDuplicateIndex
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.errors import DataError, FmnistError, SettingsError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.settings import Settings
from tests.support import synthetic
from tests.support.pipeline import Pipeline

IMAGES, LABELS = synthetic.make_images(1200, 5)


def create(path: Path, *options: str) -> tuple[dict, Declaration, dict[str, np.ndarray]]:
    """Return the report, the declaration, and the arrays of a new dataset."""
    result = CliRunner().invoke(app, ["dataset", "new", "own", str(path), *options, "--json"], catch_exceptions=False)
    if result.exit_code:
        raise FmnistError(result.output)
    settings = Settings.from_environment()
    declaration = read_declaration(settings.find_declaration("own"))
    return json.loads(result.stdout), declaration, load_base(declaration, settings)[0]


def save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


def test_a_folder_of_pictures_becomes_a_dataset(pipeline: Pipeline, tmp_path: Path) -> None:
    kinds: list[tuple[str, Callable[[Image.Image], Image.Image]]] = [
        ("png", lambda image: image),
        ("bmp", lambda image: image.convert("RGB")),
        ("tiff", lambda image: image.resize((56, 56))),
    ]
    for number, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        suffix, convert = kinds[number % 3 if number < 90 else 0]
        folder = tmp_path / "pictures" / f"kind {label}"
        folder.mkdir(parents=True, exist_ok=True)
        convert(Image.fromarray(pixels)).save(folder / f"{number}.{suffix}")
    (tmp_path / "pictures" / "kind 0" / "broken.png").write_bytes(b"not a picture")
    report, declaration, arrays = create(tmp_path / "pictures", "--title", "Own", "--ood-label", "none of them")
    assert (declaration.title, declaration.ood_label) == ("Own", "none of them")
    assert declaration.classes == [f"kind {label}" for label in range(10)]
    assert declaration.image_format.shape == (28, 28)
    assert (report["resized"], report["converted_colours"]) == (30, 30)
    assert report["sizes"] == "28 × 28: 1,170, 56 × 56: 30"
    assert [reason.partition(" is ")[0] for reason in report["unreadable"]] == ["kind 0/broken.png"]
    assert arrays["test_images"].shape == (200, 28, 28)
    assert np.bincount(arrays["test_labels"]).tolist() == [20] * 10
    assert len(arrays["train_images"]) + 200 + report["exact_copies_removed"] == 1200
    assert read_policy({}, declaration.find_gates(Path())).accuracy.min == 0.5


def test_near_duplicates_are_on_the_same_side_of_the_split(pipeline: Pipeline, tmp_path: Path) -> None:
    images = np.concatenate([IMAGES[:800], np.roll(IMAGES[:800], 1, axis=2)])
    _, _, arrays = create(save(tmp_path, images=images, labels=np.concatenate([LABELS[:800]] * 2)))
    assert len(arrays["test_images"]) >= 200
    assert (NearDuplicateIndex(arrays["train_images"]).find(arrays["test_images"]).positions == -1).all()


def test_copies_are_removed_and_those_with_several_labels_altogether(pipeline: Pipeline, tmp_path: Path) -> None:
    test_images, test_labels = synthetic.make_images(400, 6)
    path = save(
        tmp_path,
        x_train=np.concatenate([IMAGES, test_images[:7], IMAGES[:5]]),
        y_train=np.concatenate([LABELS, test_labels[:7], (LABELS[:5] + 1) % 10]),
        x_test=np.concatenate([test_images, np.roll(IMAGES[100:103], 1, axis=1)]),
        y_test=np.concatenate([test_labels, LABELS[100:103]]),
    )
    report, declaration, arrays = create(path)
    assert report["exact_copies_removed"] == 7
    assert report["copies_with_different_labels_removed"] == 10
    assert report["test_images_with_a_near_duplicate_in_training"] == 3  # chosen by the user, so they stay
    assert (len(arrays["train_images"]), len(arrays["test_images"])) == (1195, 403)
    assert read_policy({}, declaration.find_gates(Path())).data.on_split_difference == "warning"


def test_the_same_images_give_the_same_files(pipeline: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path, images=IMAGES, labels=LABELS)
    first = create(path)[1]
    folder = Settings.from_environment().datasets
    folder.rename(folder.with_name("earlier"))
    assert create(path)[1].files == first.files


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (IMAGES[:300], LABELS[:300], r"too few images in the test split: 0 \(5\)"),
        (IMAGES, np.zeros(1200, int), "the highest class index is 0, but a dataset has 2 to 256 classes"),
        (IMAGES, LABELS.astype(int) - 1, "images.npz: labels range from -1 to 8"),
        (IMAGES, np.array(["shirt"] * 1200), "there is only one class, 'shirt'"),
        (IMAGES / 255, LABELS, "images are float64; save the original pixels as uint8"),
        (IMAGES[:, :5, :5], LABELS, "its images have 5 × 5 pixels, expected 8 to 96"),
    ],
)
def test_unsuitable_images_are_refused(
    pipeline: Pipeline, tmp_path: Path, images: np.ndarray, labels: np.ndarray, fault: str
) -> None:
    with pytest.raises(FmnistError, match=fault):
        create(save(tmp_path, images=images, labels=labels))
    assert not list(Settings.from_environment().datasets.glob("*"))


def test_an_empty_class_folder_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    for name in ("robin", "wren"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "pictures" / "robin" / "1.png")
    refusal = "the folder wren has no images; put some into it, or delete it"
    with pytest.raises(FmnistError, match=f"pictures: {refusal}"):
        create(tmp_path / "pictures")
    (tmp_path / "pictures" / "wren" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(FmnistError, match=f"pictures: {refusal}"):
        create(tmp_path / "pictures")
    path = shutil.make_archive(str(tmp_path / "birds"), "zip", tmp_path / "pictures")
    with pytest.raises(FmnistError, match=rf"birds\.zip: {refusal}"):
        create(Path(path))


def test_a_pair_of_idx_files_for_each_split_is_found_by_name(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "emnist"
    folder.mkdir()
    for split, part in (("train", slice(0, 800)), ("test", slice(800, 1200))):
        (folder / f"emnist-{split}-images-idx3-ubyte").write_bytes(synthetic.encode_idx(IMAGES[part]))
        (folder / f"emnist-{split}-labels-idx1-ubyte").write_bytes(synthetic.encode_idx(LABELS[part]))
    _, _, arrays = create(folder)
    assert (len(arrays["train_images"]), len(arrays["test_images"])) == (800, 400)
    for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        (folder / f"more-{kind}-ubyte").write_bytes(synthetic.encode_idx(array))
    with pytest.raises(DataError, match="there are two pairs of IDX files for the train split"):
        read_source(folder)
    (folder / "more-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"it has more-labels-idx1-ubyte and more-labels-idx1-ubyte\.gz; remove one"):
        read_source(folder)


def test_too_few_test_images_because_they_are_alike_are_explained(pipeline: Pipeline, tmp_path: Path) -> None:
    """As with a camera that does not move: what differs is noise."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 4, (len(LABELS), 28, 28), np.uint8)
    images = np.where((LABELS == 0)[:, None, None], IMAGES[LABELS == 0][:1] // 2 + noise, IMAGES)
    with pytest.raises(
        FmnistError, match=r"Most images of 0 are near-duplicates of each other, which stay in one split"
    ):
        create(save(tmp_path, images=images, labels=LABELS))


def test_labels_of_two_kinds_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    names = np.array([f"kind {label}" for label in LABELS])
    path = save(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=names)
    with pytest.raises(FmnistError, match="labels are names in one split and numbers in another"):
        create(path)


def test_a_compressed_table_with_digits_of_any_script_becomes_a_dataset(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    header = ",".join(["label", *(f"pixel{number}" for number in range(784))])
    rows = [",".join(["²³"[label % 2], *map(str, image.ravel())]) for image, label in zip(IMAGES, LABELS, strict=True)]
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    _, declaration, _ = create(path)
    assert declaration.classes == ["²", "³"]


def test_the_store_of_an_earlier_dataset_is_not_reused(pipeline: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path, images=IMAGES, labels=LABELS)
    open_default_store("own").put("batches/old.json", b"{}")
    with pytest.raises(FmnistError, match=r"the store has objects of an earlier dataset own, such as .*batches/old"):
        create(path)


def test_a_folder_that_cannot_be_written_is_named(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_DATASETS", "/proc/datasets")
    with pytest.raises(FmnistError, match=r"cannot write /proc/datasets.*; free some space, or set FMNIST_DATASETS"):
        create(save(tmp_path, images=IMAGES, labels=LABELS))


def test_a_class_folder_that_is_a_link_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "wren").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "pictures" / "wren" / "1.png")
    (tmp_path / "pictures" / "robin").symlink_to(tmp_path / "pictures" / "wren")
    with pytest.raises(FmnistError, match=r"robin is a symbolic link, which is not followed; copy the folder"):
        create(tmp_path / "pictures")


def test_a_declaration_under_another_name_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    create(save(tmp_path, images=IMAGES, labels=LABELS))
    settings = Settings.from_environment()
    (settings.datasets / "own.toml").rename(settings.datasets / "other.toml")
    with pytest.raises(SettingsError, match=r"other\.toml: name is 'own', not that of the file, 'other'"):
        load_declaration(settings, "other")


@pytest.mark.parametrize(("side", "limit"), [(8, 10_000_000), (28, 10_000_000), (56, 40_000_000)])
def test_a_model_of_large_images_may_have_more_bytes(pipeline: Pipeline, tmp_path: Path, side: int, limit: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), side, side), np.uint8)
    declaration = create(save(tmp_path, images=images, labels=LABELS))[1]
    serving = read_policy({}, declaration.find_gates(Path())).serving
    assert (serving.max_bytes, serving.max_single_image_ms) == (limit, limit / 200_000)


def test_an_existing_dataset_is_not_replaced(pipeline: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path, images=IMAGES, labels=LABELS)
    declaration = create(path)[1]
    with pytest.raises(FmnistError, match="exists; choose another name, or delete"):
        create(path)
    assert read_declaration(Settings.from_environment().find_declaration("own")) == declaration


@pytest.mark.parametrize("count", [2, 10, 11])
def test_classes_that_are_numbers_are_given_names(pipeline: Pipeline, tmp_path: Path, count: int) -> None:
    names = [f"kind {number}" for number in range(count)]
    path = save(tmp_path, images=IMAGES, labels=LABELS)
    if count == 10:
        assert create(path, "--classes", ", ".join(names))[1].classes == names
    else:  # too few for the labels, or too many, so that a class has no images
        with pytest.raises(FmnistError, match=rf"images.npz has 10 classes, but --classes has {count} names"):
            create(path, "--classes", ", ".join(names))


@pytest.mark.parametrize(
    "options",
    [
        ["--classes", ",".join(["shirt"] * 10)],
        ["--classes", "image,a,b,c,d,e,f,g,h,i"],
        ["--ood-label", "3"],
        ["--title", "a\nb"],
        ["--ood-label", ""],
        ["--ood-label", "a" * 101],
    ],
)
def test_an_invalid_description_is_refused(pipeline: Pipeline, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(FmnistError, match="error: "):
        create(save(tmp_path, images=IMAGES, labels=LABELS), *options)
    assert not list(Settings.from_environment().datasets.glob("*"))


@pytest.mark.parametrize("name", ["../up", ".hidden", "two words", "größe", "a" * 65, ""])
def test_an_invalid_name_is_refused(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["dataset", "new", name, str(save(tmp_path, images=IMAGES, labels=LABELS))])
    assert result.exit_code == 1
    assert "is not a name for a dataset: use up to 64 letters, digits, - and _" in result.stderr
    assert not list(pipeline.home.rglob("gates.toml"))
