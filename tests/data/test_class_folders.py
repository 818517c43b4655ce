"""Folders and zip files of images: class and split come from the path, and every file is bounded."""

from __future__ import annotations

import io
import unicodedata
import warnings
import zipfile
from pathlib import Path

import pytest

from fmnist_tasks.data import class_folders
from fmnist_tasks.data.class_folders import EncodedImage, list_archive, list_folder
from fmnist_tasks.errors import DataError

BIRDS = ["sparrow/1.png", "sparrow/2.jpg", "wren/1.png"]
SPLIT_BIRDS = [f"{split}/{name}" for split in ("Train", "test", "valid") for name in BIRDS]


def make_zip(*names: str, content: bytes = b"image", compression: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            archive.writestr(name, content)
    return file


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return folder


def list_both(folder: Path, *names: str) -> list[EncodedImage]:
    """List a folder with these files, which must give the same as a zip file."""
    images = list_folder(make_folder(folder, *names))
    in_zip = list_archive(make_zip(*names), "b.zip")
    assert [(image.split, image.label, image.read()) for image in in_zip] == [
        (image.split, image.label, image.read()) for image in images
    ]
    return images


@pytest.mark.parametrize("prefix", ["", "birds/", "a/birds/"])
def test_the_class_is_the_folder(tmp_path: Path, prefix: str) -> None:
    junk = [".DS_Store", "__MACOSX/sparrow/._1.png", "sparrow/Thumbs.db", "wren/.hidden.png"]
    images = list_both(tmp_path, *(prefix + name for name in [*BIRDS, *junk]))
    assert [(image.split, image.label) for image in images] == [(None, "sparrow"), (None, "sparrow"), (None, "wren")]


@pytest.mark.parametrize("prefix", ["", "birds/"])
def test_the_split_is_the_folder_above_and_validation_is_training(tmp_path: Path, prefix: str) -> None:
    images = list_both(tmp_path, *(prefix + name for name in SPLIT_BIRDS))
    assert [(image.split, image.label) for image in images] == [
        (split, label) for split in ("train", "test", "train") for label in ("sparrow", "sparrow", "wren")
    ]


def test_classes_may_have_the_names_of_splits(tmp_path: Path) -> None:
    images = list_both(tmp_path, "test/1.png", "train/1.png", "val/1.png")
    assert [(image.split, image.label) for image in images] == [(None, "test"), (None, "train"), (None, "val")]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["1.png", "wren/1.png"], "'1.png' is not in the folder of a class; remove it, or use one folder for each"),
        (["sparrow/1.png", "wren/young/1.png"], "'wren/young/1.png' is not in the folder of a class"),
        (["train/wren/1.png", "more/wren/1.png"], "'more/wren/1.png' is not in the folder of a class"),
        ([".hidden/1.png"], "has no files in folders of classes"),
        ([], "has no files in folders of classes"),
    ],
)
def test_another_structure_is_refused(tmp_path: Path, names: list[str], fault: str) -> None:
    for read in (lambda: list_folder(make_folder(tmp_path, *names)), lambda: list_archive(make_zip(*names), "b.zip")):
        with pytest.raises(DataError, match=fault):
            read()


def test_files_of_operating_systems_are_ignored_and_names_composed(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Grünfink")
    images = list_both(tmp_path, f"{decomposed}/1.png", "wren/1.png", "wren/._1.png", "wren/Thumbs.db", ".nomedia")
    assert [image.label for image in images] == ["Grünfink", "wren"]


def test_several_files_of_one_name_in_a_zip_file_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name
        for content in (b"a", b"b"):
            archive.writestr("wren/1.png", content)
    with pytest.raises(DataError, match=r"^b\.zip has several files named 'wren/1\.png'"):
        list_archive(buffer, "b.zip")


def test_damage_to_a_zip_file_is_reported_by_name() -> None:
    whole = make_zip(*BIRDS, content=bytes(1000)).getvalue()
    for content in (b"", b"PK", whole[:-30]):
        with pytest.raises(DataError, match=r"^b.zip is not a zip file, or is truncated"):
            list_archive(io.BytesIO(content), "b.zip")
    changed = bytearray(whole)
    changed[whole.index(b"sparrow/1.png") + 15] ^= 0xFF
    with pytest.raises(DataError, match=r"^b.zip: 'sparrow/1.png' is damaged"):
        list_archive(io.BytesIO(bytes(changed)), "b.zip")[0].read()
    with pytest.raises(DataError, match=r"^b.zip: 'sparrow/1.png' has an unsupported compression"):
        list_archive(make_zip("sparrow/1.png", compression=zipfile.ZIP_LZMA), "b.zip")[0].read()


def test_a_zip_bomb_is_never_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """65 MB in 65 kB: too large for an image. The size of all files is limited by what the directory declares."""
    bomb = make_zip("a/1.png", content=bytes(65 << 20))
    with pytest.raises(DataError, match=r"b.zip: a/1.png has more than the 67,108,864 bytes allowed"):
        list_archive(bomb, "b.zip")[0].read()
    monkeypatch.setattr(class_folders, "_MAX_TOTAL_BYTES", 14)
    with pytest.raises(DataError, match=r"b.zip: its files have 15 bytes; the limit is 14"):
        list_archive(make_zip(*BIRDS), "b.zip")
