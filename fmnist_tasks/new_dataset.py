"""Creating a dataset from a user's images: its declaration, its canonical files, and its gates.

    datasets/birds.toml          the declaration, to edit
    datasets/birds/gates.toml    the thresholds of the gates, to edit
    datasets/birds/              also four IDX files, compressed

Exact copies are removed, and without a test split one is chosen, without near-duplicates in training.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fmnist_tasks.data.declaration import Declaration, File, Role, read_declaration
from fmnist_tasks.data.duplicates import compute_digests
from fmnist_tasks.data.labelled_sources import LabelledImages, LabelledSource
from fmnist_tasks.data.near_duplicates import NearDuplicateIndex
from fmnist_tasks.data.splitting import choose_test_images
from fmnist_tasks.errors import ConflictError, DataError, SettingsError
from fmnist_tasks.model.ood.families import ROTATED_FAMILIES, find_resembling_families, list_families
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import describe_faults
from fmnist_tasks.schemas.data import ImageFormat
from fmnist_tasks.settings import DATASET_NAME, INCLUDE

MIN_IMAGES = 20  # of a class and split, for the statistical checks


@dataclass(frozen=True)
class NewDataset:
    """A dataset that was created, and what to tell its user."""

    declaration: Declaration
    path: Path  # of the declaration
    report: dict[str, Any]


def create_dataset(
    source: LabelledSource,
    store: Store,
    folder: Path,
    name: str,
    *,
    title: str,
    ood_label: str,
    horizontal_flip: bool,
    upright: bool,
) -> NewDataset:
    """Write the files of a new dataset into a folder; its store must be unused.

    Raises :class:`ConflictError` if the dataset or its store exists, :class:`SettingsError` for an invalid name or
    answer, and :class:`DataError` if there are too few images or classes.
    """
    if not DATASET_NAME.fullmatch(name):
        raise SettingsError(f"{name[:80]!r} is not a name for a dataset: use up to 64 letters, digits, - and _")
    path = folder / f"{name}.toml"
    for existing in (path, folder / name):
        if existing.exists():
            raise ConflictError(f"{existing} exists; choose another name, or delete {path} and {folder / name}")
    for stat in chain(store.list("batches/"), store.list("champion/")):
        raise ConflictError(
            f"the store has objects of an earlier dataset {name}, such as {store.location(stat.key)}; choose another "
            "name, or delete them"
        )
    if len(source.classes) < 2:
        raise DataError(f"there is only one class, {source.classes[0]!r}; a classifier needs two or more")
    splits, copies, conflicts = _remove_copies(source.splits)
    near = 0
    if has_splits := set(splits) == {"train", "test"}:
        training, test = splits["train"], splits["test"]
        near = int((NearDuplicateIndex(training.images).find(test.images).positions >= 0).sum())
    else:
        (everything,) = splits.values()
        chosen = choose_test_images(everything.images, everything.labels)
        test = LabelledImages(everything.images[chosen], everything.labels[chosen])
        training = LabelledImages(
            np.delete(everything.images, chosen, axis=0), np.delete(everything.labels, chosen, axis=0)
        )
    _require_enough(source.classes, training, test, is_divided=not has_splits)
    image_format = ImageFormat(
        height=source.height,
        width=source.width,
        channels=3 if source.channels == 3 else 1,
        horizontal_flip=horizontal_flip,
        upright=upright,
        background=source.background,
    )
    arrays: dict[Role, np.ndarray] = {
        "train_images": training.images,
        "train_labels": training.labels.astype(np.uint8),
        "test_images": test.images,
        "test_labels": test.labels.astype(np.uint8),
    }
    gates = f"{name}/gates.toml"
    try:
        declaration = Declaration(
            name=name,
            title=title,
            classes=source.classes,
            image_format=image_format,
            ood_label=ood_label,
            gates=gates,
            files={role: _describe_file(role, array) for role, array in arrays.items()},
        )
    except ValidationError as error:
        raise SettingsError(describe_faults(error)) from error
    declaration = declaration.model_copy(update={"excluded_families": find_resembling_families(training.images)})
    try:
        _write_files(folder / name, declaration, arrays)
    except OSError as error:
        raise SettingsError(
            f"cannot write {error.filename or folder}: {error.strerror}; free some space, or set FMNIST_DATASETS to a "
            "folder that you can write to"
        ) from error
    largest = np.bincount(training.labels).max() / len(training.labels)
    (folder / gates).write_text(render_gates(declaration, float(largest), has_splits=has_splits), encoding="utf-8")
    path.write_text(render_declaration(declaration), encoding="utf-8")
    if read_declaration(path).model_dump() != declaration.model_dump():
        raise DataError(f"{path} cannot be read back unchanged; use simpler class names, and report this as a bug")
    contents = source.contents
    return NewDataset(
        declaration,
        path,
        {
            "declaration": str(path),
            "images": f"{image_format}; training {len(training.labels):,}, test {len(test.labels):,}",
            "classes": ", ".join(source.classes),
            "images_by_class": _count_by_class(source.classes, training, test),
            "sizes": ", ".join(f"{h} × {w}: {count:,}" for (h, w), count in contents.sizes.most_common(5)),
            "colour_modes": ", ".join(f"{mode}: {count:,}" for mode, count in contents.modes.most_common()),
            "resized": contents.resized,
            "converted_colours": contents.converted_colours,
            "unreadable": contents.unreadable,
            "exact_copies_removed": copies,
            "copies_with_different_labels_removed": conflicts,
            "test_images_with_a_near_duplicate_in_training": near,
            "excluded_ood_families": declaration.excluded_families,
        },
    )


def _remove_copies(splits: dict[Any, LabelledImages]) -> tuple[dict[Any, LabelledImages], int, int]:
    """Keep one of several identical images, that of the test split if there is one; none if their labels differ."""
    order = sorted(splits, key=lambda split: split != "test")
    digests = {split: compute_digests(splits[split].images) for split in order}
    labels: dict[bytes, set[int]] = {}
    for split in order:
        for digest, label in zip(digests[split], splits[split].labels.tolist(), strict=True):
            labels.setdefault(digest, set()).add(label)
    kept, copies, conflicts, used = {}, 0, 0, set[bytes]()
    for split in order:
        part, selected = splits[split], []
        for position, digest in enumerate(digests[split]):
            if len(labels[digest]) > 1:
                conflicts += 1
            elif digest in used:
                copies += 1
            else:
                selected.append(position)
                used.add(digest)
        kept[split] = LabelledImages(part.images[selected], part.labels[selected])
    return kept, copies, conflicts


def _require_enough(classes: list[str], training: LabelledImages, test: LabelledImages, *, is_divided: bool) -> None:
    """Raise :class:`DataError` if a class has too few images in a split; `is_divided`: test images were chosen here."""
    counts = {
        split: np.bincount(part.labels, minlength=len(classes))
        for split, part in (("training", training), ("test", test))
    }
    total = counts["training"] + counts["test"]
    for split, numbers in counts.items():
        few = np.flatnonzero(numbers < MIN_IMAGES).tolist()
        if not few:
            continue
        hint = f", so about {6 * MIN_IMAGES} in all, since a sixth of them becomes the test split" if is_divided else ""
        remedy = "Add images, or merge classes"
        alike = [label for label in few if is_divided and total[label] >= 6 * MIN_IMAGES]
        if alike:
            remedy = (
                f"Most images of {classes[alike[0]]} are near-duplicates of each other, which stay in one split: add "
                "images that differ, or put test images into a folder test/"
            )
        shown = ", ".join(f"{classes[label]} ({numbers[label]})" for label in few[:5])
        raise DataError(
            f"too few images in the {split} split: {shown}; each class needs at least {MIN_IMAGES} in each split"
            f"{hint}. {remedy}"
        )


def _count_by_class(classes: list[str], training: LabelledImages, test: LabelledImages) -> dict[str, int]:
    counts = np.bincount(np.concatenate([training.labels, test.labels]), minlength=len(classes))
    return dict(zip(classes, counts.tolist(), strict=True))


def _describe_file(role: Role, array: np.ndarray) -> File:
    """Return the description of the IDX file of an array, uint8, in C order."""
    header = _make_header(array)
    digest = hashlib.sha256(header)
    digest.update(array.data)
    name = f"{role.replace('_', '-')}-idx{array.ndim}-ubyte.gz"
    return File(name=name, bytes=len(header) + array.nbytes, sha256=digest.hexdigest())


def _write_files(folder: Path, declaration: Declaration, arrays: dict[Role, np.ndarray]) -> None:
    """Write the arrays as compressed IDX files; the same arrays give the same bytes."""
    folder.mkdir(parents=True)
    for role, array in arrays.items():
        with (
            (folder / declaration.files[role].name).open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed,
        ):
            compressed.write(_make_header(array))
            compressed.write(array.data)


def _make_header(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)


def render_declaration(declaration: Declaration) -> str:
    """Return a declaration as TOML, with comments for what users may edit."""
    form = declaration.image_format
    lines = [
        f"# {declaration.title}: a dataset declaration; docs/own-data.md describes every key.",
        f"name = {_quote(declaration.name)}",
        f"title = {_quote(declaration.title)}",
        f"classes = {_quote(declaration.classes)}",
        f"ood_label = {_quote(declaration.ood_label)} # the answer for an image that is unlike the dataset",
        f"excluded_families = {_quote(declaration.excluded_families)} # OOD families that resemble the dataset",
        f"gates = {_quote(declaration.gates)} # the thresholds, beside this file",
        "",
        "[image_format]",
        f"height = {form.height}",
        f"width = {form.width}",
        f"channels = {form.channels} # 1: greyscale, 3: colour",
        f"horizontal_flip = {_quote(form.horizontal_flip)} # whether a flipped image has the same label",
        f"upright = {_quote(form.upright)} # whether an image that is upside down is out of distribution",
        *([f"background = {form.background} # shade around the object"] if form.background is not None else []),
    ]
    for role, file in declaration.files.items():
        lines += [
            "",
            f"[files.{role}]",
            f"name = {_quote(file.name)}",
            f"bytes = {file.bytes}",
            f"sha256 = {_quote(file.sha256)}",
        ]
    return "\n".join([*lines, ""])


def render_gates(declaration: Declaration, largest_share: float, *, has_splits: bool) -> str:
    """Return a policy to begin with: that of the project, with lower thresholds and the families of this dataset."""
    _, _, text = (INCLUDE / "gates.toml").read_text(encoding="utf-8").partition("\n\n")  # without its heading
    minimum = min(0.9, max(0.5, round(1.5 * largest_share, 2)))
    families = list_families(declaration)
    # The network computes, and its OOD probe has weights, for each pixel.
    factor = max(1, declaration.image_format.height * declaration.image_format.width / (28 * 28))
    lines = []
    for line in text.splitlines():
        if match := re.match(r'"([^"]+)" = ', line):
            if match[1] in families and match[1] not in ROTATED_FAMILIES:
                lines.append(f'"{match[1]}" = {{ min_auroc = 0.8, max_fpr99 = 1.0 }}')
            continue
        line = re.sub(r"^min = 0\.92$", f"min = {minimum}", line)
        line = re.sub(r"^min_recall = 0\.70$", "min_recall = 0.0", line)
        line = re.sub(r"^max_error = 0\.015$", "max_error = 0.1", line)
        line = re.sub(r"^max_imbalance = 2 ", "max_imbalance = 100 ", line)
        line = re.sub(r"^max_bytes = 10_000_000$", f"max_bytes = {round(factor * 10_000_000):_}", line)
        line = re.sub(r"^max_single_image_ms = 50 ", f"max_single_image_ms = {round(factor * 50)} ", line)
        if has_splits:  # as the user chose them
            line = line.replace('on_split_difference = "reject"', 'on_split_difference = "warning"')
        lines.append(line)
    heading = (
        f"# The policy of the gates for {declaration.title}, with low thresholds to begin with.\n"
        "# If the first run is rejected, read the failed checks in its report. Once there is a champion, set the\n"
        "# thresholds slightly below what its report shows, and add the other OOD families that you want to require.\n"
        "# docs/gates.md describes each check.\n"
    )
    return "\n".join([heading, *lines, ""])


def _quote(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
