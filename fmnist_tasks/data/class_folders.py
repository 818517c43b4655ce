"""Folders and zip files with one subfolder of image files for each class, with or without folders for the splits.

    birds/sparrow/1.png                  birds/train/sparrow/1.png
    birds/wren/2.jpg                     birds/test/wren/2.jpg

A folder that has only the one with the classes is skipped, and so are hidden files and those of operating systems.
Nothing is decoded here, and a zip file is never unpacked.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from fmnist_tasks.data.archives import open_archive, require_readable
from fmnist_tasks.data.files import convert_errors, read_file
from fmnist_tasks.data.image_files import MAX_BYTES
from fmnist_tasks.errors import DataError
from fmnist_tasks.schemas.data import Split, normalize_class_name

_SPLITS: dict[str, Split] = dict.fromkeys(("train", "training", "val", "valid", "validation"), "train")
_SPLITS |= dict.fromkeys(("test", "testing"), "test")
_MAX_DIRECTORY_BYTES = 64 << 20  # of a zip file; some 800,000 files, each an object of a kilobyte
_MAX_TOTAL_BYTES = 16 << 30  # of all files in it
_SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini", ".ds_store", ".directory", ".nomedia", ".gitkeep"}
_RESOURCE_FORK = "._"  # how macOS begins the name of a file with the metadata of another one


@dataclass(frozen=True)
class EncodedImage:
    """An image file of a class."""

    name: str  # its path, for messages
    split: Split | None  # None if there are no folders for splits
    label: str  # the name of its class
    read: Callable[[], bytes]  # raises :class:`DataError`, or OSError
    is_label_index: bool = False  # whether the label is the index of a class


def list_folder(folder: Path) -> list[EncodedImage]:
    """Return the images of a folder, sorted by path; raises :class:`DataError` if it has no such structure."""
    paths = {}

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        if links := [name for name in folders if Path(place, name).is_symlink() and not _is_ignored(name)]:
            raise DataError(f"{Path(place, links[0])} is a symbolic link, which is not followed; copy the folder there")
        for name in files:
            path = Path(place, name)
            paths[path.relative_to(folder).as_posix()] = partial(read_file, path, str(path), MAX_BYTES)
    return assign_classes(paths, str(folder))


def list_archive(file: BinaryIO, name: str) -> list[EncodedImage]:
    """Return the images of a zip file; raises like :func:`list_folder`, and for a file that is not a zip file."""
    archive = open_archive(file, name, "a zip file", _MAX_DIRECTORY_BYTES)
    members = [member for member in archive.infolist() if not member.is_dir()]
    repeated = [path for path, count in Counter(member.filename for member in members).items() if count > 1]
    if repeated:
        raise DataError(f"{name} has several files named {repeated[0][:80]!r}; give them different names")
    total = sum(member.file_size for member in members)  # zipfile never reads more of a member
    if total > _MAX_TOTAL_BYTES:
        raise DataError(f"{name}: its files have {total:,} bytes; the limit is {_MAX_TOTAL_BYTES:,}")

    def read(member: zipfile.ZipInfo) -> bytes:
        require_readable(member, name)
        with convert_errors(f"{name}: {member.filename!r} is damaged"), archive.open(member) as content:
            return read_file(cast(BinaryIO, content), f"{name}: {member.filename}", MAX_BYTES)

    return assign_classes({member.filename: partial(read, member) for member in members}, name)


def assign_classes(files: Mapping[str, Callable[[], bytes]], source: str) -> list[EncodedImage]:
    """Return the images with the split and class that their paths name; raises like :func:`list_folder`."""
    paths = {path: PurePosixPath(path).parts for path in sorted(files) if not _is_ignored(path)}
    skipped = _count_common_folders(paths.values())
    paths = {path: parts[skipped:] for path, parts in paths.items()}
    has_splits = bool(paths) and all(len(parts) > 2 and parts[0].lower() in _SPLITS for parts in paths.values())
    images = []
    for path, parts in paths.items():
        split = _SPLITS[parts[0].lower()] if has_splits else None
        inner = parts[1:] if has_splits else parts
        if len(inner) != 2:
            raise DataError(
                f"{source}: {path[:80]!r} is not in the folder of a class; remove it, or use one folder for each "
                "class, CLASS/IMAGE (or train/CLASS/IMAGE and test/CLASS/IMAGE)"
            )
        images.append(EncodedImage(path, split, normalize_class_name(inner[0]), files[path]))
    if not images:
        raise DataError(f"{source} has no files in folders of classes, CLASS/IMAGE")
    return images


def find_empty_folders(paths: Iterable[str]) -> list[str]:
    """Return the folders without a file that counts; among the paths of files, those of folders end with a slash."""
    folders, used = set[str](), set[str]()
    for path in paths:
        above = {parent.as_posix() for parent in PurePosixPath(path).parents} - {"."}
        if path.endswith("/"):
            above.add(PurePosixPath(path).as_posix())
        elif not _is_ignored(path):
            used |= above
        folders |= above
    return sorted(folder for folder in folders - used if not _is_ignored(folder))


def is_system_file(path: str) -> bool:
    """Whether it is a file of an operating system, such as `.DS_Store`; batches do not have it."""
    return any(part.lower() in _SYSTEM_FILES or part.startswith(_RESOURCE_FORK) for part in PurePosixPath(path).parts)


def _is_ignored(path: str) -> bool:
    return is_system_file(path) or any(part.startswith(".") for part in PurePosixPath(path).parts)


def _count_common_folders(paths: Iterable[tuple[str, ...]]) -> int:
    """Return how many folders, such as the one that a zip file was made of, are above the classes of all files."""
    paths = list(paths)
    count = 0
    while paths and all(len(parts) > count + 2 for parts in paths) and len({parts[count] for parts in paths}) == 1:
        if paths[0][count].lower() in _SPLITS:
            break
        count += 1
    return count
