"""Submitting a batch: it is read as a run will read it, then copied to `incoming/`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from fmnist_tasks.data.batch_files import MAX_BYTES, BatchContent, read_files
from fmnist_tasks.data.class_folders import list_folder
from fmnist_tasks.data.files import convert_errors
from fmnist_tasks.data.incoming import PREFIX, group_file_names, is_idx_name, is_images_name
from fmnist_tasks.errors import ConflictError, DataError, SettingsError
from fmnist_tasks.registry.store import Store, encode_name
from fmnist_tasks.schemas.data import DatasetProperties
from fmnist_tasks.text import make_printable, replace_surrogates

_NAME = re.compile(r"[^.\x00-\x1f][^\x00-\x1f]*(\.zip|\.npz|\.parquet|\.csv(\.gz)?|-ubyte(\.gz)?)", re.IGNORECASE)
_MAX_NAME_LENGTH, _MAX_KEY_BYTES = 120, 240  # characters, and bytes: file systems allow 255


@dataclass(frozen=True)
class SubmittedBatch:
    """A batch that is in `incoming/`, and what it contains."""

    keys: list[str]
    images: dict[str, int]  # by class
    converted: int
    unreadable: int
    reasons: list[str]  # for the first unreadable images


def submit_paths(store: Store, dataset: DatasetProperties, paths: Sequence[Path]) -> list[SubmittedBatch]:
    """Copy files and folders to `incoming/`; a folder becomes a zip file. Nothing is copied unless all can be read.

    Raises :class:`DataError` for a batch that a run could not read, and :class:`ConflictError` if a file of that name
    waits already.
    """
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for path in paths:
            name, file = stack.enter_context(_open_path(path))
            if name in files:
                raise ConflictError(f"{path}: another path would be submitted as {name} too; rename one of them")
            files[name] = file
        groups = [{name: files[name] for name in names} for names in group_file_names(files)]
        for group in groups:
            _require_pair(list(group))
        contents = [read_files(group, dataset) for group in groups]
        for group, content in zip(groups, contents, strict=True):
            _require_known_labels(next(iter(group)), content.labels, len(dataset.classes))
        for name in files:
            _require_free(store, make_key(name))
        for name, file in files.items():
            put_new_file(store, make_key(name), file)
    return [_describe(list(group), content, dataset.classes) for group, content in zip(groups, contents, strict=True)]


def make_key(name: str) -> str:
    """The key of a file in `incoming/`; raises :class:`SettingsError` for a name that is not one of a batch."""
    key = encode_name(name.encode(errors="surrogateescape"))
    if "/" in name or not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH or len(key.encode()) > _MAX_KEY_BYTES:
        raise SettingsError(
            f"{name[:80]!r} is not a valid name for a batch: such a name ends with .zip, .npz, .parquet, .csv, .csv.gz "
            f"or -ubyte, and has at most {_MAX_NAME_LENGTH} printable characters"
        )
    return f"{PREFIX}{key}"


def put_new_file(store: Store, key: str, file: BinaryIO) -> None:
    """Write a file; raises :class:`ConflictError` if one of this key waits already, also if it is being written."""
    if not store.put_if_absent(key, file):
        raise ConflictError(f"{key} is already waiting for the next run; rename your file to submit another batch")


def _require_free(store: Store, key: str) -> None:
    if store.stat(key):
        raise ConflictError(f"{key} is already waiting for the next run; rename your file to submit another batch")


def _require_pair(names: list[str]) -> None:
    if is_idx_name(names[0]) and [is_images_name(name) for name in names] != [True, False]:
        shown = ", ".join(names)
        raise DataError(f"{shown}: an IDX pair is one file of images and one of labels; submit both together")


def _require_known_labels(name: str, labels: np.ndarray, classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"{name}: labels range from {labels.min()} to {labels.max()}, expected 0 to {classes - 1} (indices of the "
            "classes, in the order of the declaration)"
        )


@contextmanager
def _open_path(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Open a file, or a folder as a zip file of its images; yields the name in `incoming/` and the open file."""
    if path.is_dir():
        with TemporaryFile() as file:
            with zipfile.ZipFile(file, "w") as archive:
                for image in list_folder(path):
                    with convert_errors(f"{path}: {make_printable(image.name)} cannot be read"):
                        archive.writestr(replace_surrogates(image.name), image.read())
                    _require_size(f"{path}: its images have", file.tell())
            yield f"{path.resolve().name}.zip", file
        return
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder")
    _require_size(f"{path} has", path.stat().st_size)
    with path.open("rb") as file:
        yield path.name, file


def _require_size(subject: str, size: int) -> None:
    """Raise :class:`DataError` for a file that is larger than those that a run reads; `subject` ends with the verb."""
    if size > MAX_BYTES:
        raise DataError(f"{subject} more than the {MAX_BYTES:,} bytes allowed; split the batch into several files")


def _describe(names: list[str], content: BatchContent, classes: list[str]) -> SubmittedBatch:
    counts = np.bincount(content.labels.astype(np.int64).clip(0), minlength=len(classes))
    images = {name: int(count) for name, count in zip(classes, counts, strict=False) if count}
    return SubmittedBatch(
        [make_key(name) for name in names], images, content.converted, content.unreadable, content.reasons
    )
