"""Labelled images in the formats in which people have them: folders, zip files, CSV, Parquet, `.npz` and IDX.

Whatever the format, the result is one set of arrays for each split that the source has.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fmnist_tasks.data.array_layouts import convert_images, convert_labels, find_pairs, infer_shape
from fmnist_tasks.data.class_folders import EncodedImage, find_empty_folders, list_archive, list_folder
from fmnist_tasks.data.csv_tables import read_csv
from fmnist_tasks.data.files import name_file_in_errors
from fmnist_tasks.data.idx import read_idx
from fmnist_tasks.data.image_files import decode_image_file
from fmnist_tasks.data.npz import list_arrays, read_npz
from fmnist_tasks.data.parquet_tables import read_parquet
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import MAX_SIDE, MIN_SIDE, ImageFormat, Split, normalize_class_name

MAX_BYTES = 8 << 30  # of all pixels
_DEFAULT_SIDE = 32  # of images of different or larger sizes
_SAMPLE = 500  # images whose colours and backgrounds are looked at
_COLOURED = 16  # difference between red, green and blue from which a pixel has a colour
_MIN_COLOURED = 0.01  # share of coloured pixels, and of images that have so many, from which a dataset has colour
_FRACTION = re.compile(r"(0|[1-9][0-9]*)\.0+")  # as pandas writes numbers if a label was missing elsewhere
_IDX_FILE = re.compile(r".*(?:images|labels)[-.]idx\d.*")


@dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 (N, H, W) or (N, H, W, 3), and class indices, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass
class SourceContents:
    """What a source contained, and what was changed."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # height and width
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's colour modes
    resized: int = 0
    converted_colours: int = 0
    unreadable: list[str] = field(default_factory=list)  # the reason for each image that was left out


@dataclass(frozen=True)
class LabelledSource:
    """The images of a source by split (None: it has no splits), its classes, and what was found."""

    splits: dict[Split | None, LabelledImages]
    classes: list[str]
    height: int
    width: int
    channels: int
    background: int | None
    contents: SourceContents


def read_source(
    path: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, classes: Sequence[str] = ()
) -> LabelledSource:
    """Read a folder or file of labelled images; raises :class:`DataError` with what is wrong and what to do.

    `size` (height, width) and `channels` are those of the result, by default those of most images; arrays are not
    resized. `classes` are the names of the class indices, by default the numbers.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or file")
    if path.is_dir():
        _require_nonempty_folders(path, _list_paths(path))
    if path.is_dir() and (tables := sorted(path.glob("*.parquet"))):
        return _read_encoded(str(path), _read_tables(tables), size, channels, classes)
    if path.is_dir() and not (idx := _find_idx_files(path)):
        return _read_encoded(str(path), list_folder(path), size, channels, classes)
    if path.is_dir():
        return _read_arrays(str(path), _read_idx_files(idx), size, channels, classes)
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    with path.open("rb") as file:
        if suffix == "zip":
            members = list_archive(content := io.BytesIO(file.read()), path.name)
            _require_nonempty_folders(path, zipfile.ZipFile(content).namelist())
            return _read_encoded(path.name, members, size, channels, classes)
        if suffix == "parquet":
            return _read_encoded(path.name, read_parquet(file, path.name), size, channels, classes)
        if suffix == "csv":
            return _read_arrays(path.name, {None: read_csv(file, path.name, MAX_BYTES)}, size, channels, classes)
        if suffix == "npz":
            with name_file_in_errors(path.name):
                pairs = find_pairs(names := list_arrays(file, path.name))
            if not pairs:
                raise DataError(
                    f"{path.name} has the arrays {', '.join(names)}, but no usual names for images and labels; save "
                    "them as images and labels, or x_train, y_train, x_test and y_test"
                )
            arrays: dict[str | None, tuple[np.ndarray, np.ndarray]] = {}
            for split, pair in pairs.items():
                images, labels = read_npz(file, path.name, *pair, max_bytes=MAX_BYTES)
                arrays[split] = (images, labels)
            return _read_arrays(path.name, arrays, size, channels, classes)
    raise DataError(
        f"{path.name}: unsupported format; use a folder or zip file with one folder of images for each class, a .csv "
        "with a column `label`, an .npz or .parquet file, or a folder of Parquet or IDX files"
    )


def _read_tables(paths: list[Path]) -> list[EncodedImage]:
    """Read Parquet files whose names contain their split, as on Hugging Face: train-00000-of-00001.parquet."""
    images = []
    for path in paths:
        match = re.search(r"(?:^|[-_.])(train|test|val|valid|validation)(?=[-_.])", path.name.lower())
        split: Split | None = None if match is None else "test" if match[1] == "test" else "train"
        with path.open("rb") as file:
            images += read_parquet(file, path.name, split)
    if len(splits := {image.split for image in images}) > 1 and None in splits:
        raise DataError(f"{paths[0].parent}: some Parquet files are not named after a split, train-… or test-…")
    return images


def _read_encoded(
    name: str, images: list[EncodedImage], size: tuple[int, int] | None, channels: int | None, names: Sequence[str]
) -> LabelledSource:
    """Decode images in the format that most of them have."""
    classes = sorted({image.label for image in images}, key=_to_sort_key)
    renamed = _rename_classes(name, classes, names) if names else classes
    positions = {label: int(label) if names else position for position, label in enumerate(classes)}
    contents = SourceContents()
    sample = _decode_sample(images)
    height, width = size or _choose_size(images)
    channels = channels or (3 if _has_colour(sample) else 1)
    background = _find_background(sample)
    image_format = ImageFormat(
        height=height,
        width=width,
        channels=3 if channels == 3 else 1,
        horizontal_flip=False,
        upright=False,
        background=background,
    )
    splits: dict[Split | None, LabelledImages] = {}
    for split in sorted({image.split for image in images}, key=str):
        members = [image for image in images if image.split == split]
        pixels = np.empty((len(members), *image_format.shape), np.uint8)
        labels = np.empty(len(members), np.int64)
        count = 0
        for image in members:
            try:
                decoded = decode_image_file(io.BytesIO(image.read()), image.name, image_format)
            except (DataError, OSError) as error:
                contents.unreadable.append(str(error))
                continue
            contents.sizes[decoded.size[::-1]] += 1
            contents.modes[decoded.mode] += 1
            contents.resized += decoded.size != (width, height)
            contents.converted_colours += decoded.mode != ("L" if channels == 1 else "RGB")
            pixels[count], labels[count] = decoded.pixels, positions[image.label]
            count += 1
        splits[split] = LabelledImages(pixels[:count], labels[:count])
    return LabelledSource(splits, renamed, height, width, channels, background, contents)


def _read_arrays(
    name: str,
    arrays: dict[str | None, tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int] | None,
    channels: int | None,
    classes: Sequence[str],
) -> LabelledSource:
    """Convert arrays, by split, without loss."""
    first, _ = next(iter(arrays.values()))
    with name_file_in_errors(name):
        shape = infer_shape(first.shape)
        names = _list_classes([labels for _, labels in arrays.values()])
    if size and size != shape[:2]:
        raise DataError(
            f"{name}: its images have {shape[0]} × {shape[1]} pixels, and arrays are not resized; leave out --size"
        )
    if channels and channels != (shape[2] if len(shape) == 3 else 1):
        mode, option = ("greyscale", "--colour") if channels == 3 else ("colour", "--grey")
        raise DataError(
            f"{name}: its images are {mode}, and the colours of arrays are not converted; leave out {option}"
        )
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[:2]):
        raise DataError(f"{name}: its images have {shape[0]} × {shape[1]} pixels, expected {MIN_SIDE} to {MAX_SIDE}")
    names = _rename_classes(name, names, classes) if classes else names
    parts: dict[Split | None, list[LabelledImages]] = {}
    contents = SourceContents()
    for split, (images, labels) in arrays.items():
        with name_file_in_errors(name):
            converted = LabelledImages(convert_images(images, shape), convert_labels(labels, names))
        if len(converted.images) != len(converted.labels):
            raise DataError(f"{name}: {len(converted.images):,} images but {len(converted.labels):,} labels")
        target: Split | None = None if split is None else "test" if split == "test" else "train"
        parts.setdefault(target, []).append(converted)
        contents.sizes[shape[0], shape[1]] += len(images)
    splits = {
        split: LabelledImages(
            np.concatenate([part.images for part in members]), np.concatenate([part.labels for part in members])
        )
        for split, members in parts.items()
    }
    channels = shape[2] if len(shape) == 3 else 1
    contents.modes["RGB" if channels == 3 else "L"] = sum(contents.sizes.values())
    background = _find_background(next(iter(splits.values())).images[:_SAMPLE])
    return LabelledSource(splits, names, shape[0], shape[1], channels, background, contents)


def _list_classes(labels: Sequence[np.ndarray]) -> list[str]:
    """Return the names of classes in labels: names, one-hot columns, or the numbers up to the largest index."""
    first = labels[0]
    if len({part.dtype.kind in "SU" for part in labels}) > 1:
        raise DataError("labels are names in one split and numbers in another; use names in both")
    if first.dtype.kind in "SU":
        texts = {
            normalize_class_name(value.decode(errors="replace") if isinstance(value, bytes) else value)
            for part in labels
            for value in part.ravel().tolist()
        }
        if all(_FRACTION.fullmatch(text) for text in texts):
            texts = {text.partition(".")[0] for text in texts}
        return sorted(texts, key=_to_sort_key)
    if first.ndim == 2 and first.shape[1] > 1:
        return [str(number) for number in range(first.shape[1])]
    if first.dtype.kind not in "iu":
        raise DataError(f"labels are {first.dtype}, expected whole numbers (class indices, from 0) or class names")
    indices = np.concatenate([part.ravel() for part in labels])
    least, largest = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
    if least:
        raise DataError(f"labels range from {least} to {largest}; class indices must start at 0")
    if not 1 <= largest <= 255:
        raise DataError(f"the highest class index is {largest}, but a dataset has 2 to 256 classes")
    return [str(number) for number in range(largest + 1)]


def _rename_classes(source: str, numbers: list[str], names: Sequence[str]) -> list[str]:
    """Return the user's names of classes that are numbers, from 0; raises :class:`DataError` if they do not match."""
    if not all(number.isdecimal() for number in numbers):
        raise DataError(f"{source}: its classes have names already ({', '.join(numbers[:5])}, …); leave out --classes")
    if (count := 1 + max(map(int, numbers))) != len(names):
        raise DataError(f"{source} has {count:,} classes, but --classes has {len(names):,} names")
    return list(names)


def _to_sort_key(name: str) -> tuple[object, ...]:
    """Sort numbers in names by value: 2 before 10."""
    parts = filter(None, re.split(r"([0-9]+)", name))
    return (*((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), (2, 0, name))


def _choose_size(images: list[EncodedImage]) -> tuple[int, int]:
    """Return the height and width of most images if that is small enough, and of a default square otherwise."""
    sizes: Counter[tuple[int, int]] = Counter()
    for image in images:
        try:
            with Image.open(io.BytesIO(image.read())) as header:
                sizes[header.height, header.width] += 1
        except Exception:  # noqa: BLE001, S112 - it is reported when it is decoded
            continue
    (most, count), *_ = sizes.most_common(1) or [((0, 0), 0)]
    if 2 * count > sizes.total() and all(MIN_SIDE <= side <= MAX_SIDE for side in most):
        return most
    return (_DEFAULT_SIDE, _DEFAULT_SIDE)


def _decode_sample(images: list[EncodedImage]) -> np.ndarray:
    """Return some of the images in colour and in a small size, uint8 (N, 32, 32, 3)."""
    small = ImageFormat(height=32, width=32, channels=3, horizontal_flip=False, upright=False)
    chosen = np.random.default_rng(0).permutation(len(images))[:_SAMPLE]
    decoded = []
    for position in chosen:
        try:
            decoded.append(decode_image_file(io.BytesIO(images[position].read()), "", small).pixels)
        except (DataError, OSError):
            continue
    if not decoded:
        raise DataError("none of the images can be read")
    return np.stack(decoded)


def _has_colour(sample: np.ndarray) -> bool:
    """Return whether enough images, uint8 (N, H, W, 3), have enough coloured pixels."""
    is_coloured = np.ptp(sample.astype(np.int16), axis=3) > _COLOURED
    return bool((is_coloured.mean(axis=(1, 2)) > _MIN_COLOURED).mean() > _MIN_COLOURED)


def _find_background(sample: np.ndarray) -> int | None:
    """Return 0 or 255 if the edges of most images, uint8 (N, H, W, …), are black or white, and None otherwise."""
    edges = np.concatenate(
        [part.reshape(len(sample), -1) for part in (sample[:, 0], sample[:, -1], sample[:, :, 0], sample[:, :, -1])],
        axis=1,
    )
    medians = np.median(edges, axis=1)
    if (medians <= 16).mean() > 0.5:
        return 0
    return 255 if (medians >= 239).mean() > 0.5 else None


def _require_nonempty_folders(source: Path, paths: Iterable[str]) -> None:
    """Raise :class:`DataError` if a folder, such as that of a class, has no files."""
    if empty := find_empty_folders(paths):
        raise DataError(f"{source}: the folder {empty[0]} has no images; put some into it, or delete it")


def _list_paths(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        yield f"{path.relative_to(folder).as_posix()}{'/' if path.is_dir() and not path.is_symlink() else ''}"


def _find_idx_files(folder: Path) -> dict[str, Path]:
    """Return the IDX files of a folder by their names without `.gz`, in lower case."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower().removesuffix(".gz")
        if path.is_file() and _IDX_FILE.fullmatch(name):
            if name in files:
                raise DataError(f"{folder}: it has {files[name].name} and {path.name}; remove one of them")
            files[name] = path
    return files


def _read_idx_files(files: dict[str, Path]) -> dict[str | None, tuple[np.ndarray, np.ndarray]]:
    """Return images and labels by split, as the names of the files tell: train-images-idx3-ubyte, t10k-labels-…."""
    arrays: dict[str | None, tuple[np.ndarray, np.ndarray]] = {}
    for name, path in files.items():
        if "images" not in name:
            continue
        label_name = re.sub(r"images([-.])idx\d", r"labels\1idx1", name)
        if label_name not in files:
            raise DataError(f"{path.name}: the file {label_name} is missing")
        pair = []
        for part in (path, files[label_name]):
            with part.open("rb") as file:
                pair.append(read_idx(file, part.name, MAX_BYTES))
        split = "test" if re.search(r"(?:^|[-_.])(test|t10k)(?:[-_.]|$)", name) else "train"
        if split in arrays:
            raise DataError(f"{path}: there are two pairs of IDX files for the {split} split; leave one of them out")
        arrays[split] = (pair[0], pair[1])
    if set(arrays) == {"train"}:
        return {None: arrays["train"]}
    return arrays
