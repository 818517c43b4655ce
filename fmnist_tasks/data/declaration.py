"""The declaration of a dataset: its classes, and the size and digest of each file (`include/datasets/*.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from fmnist_tasks.errors import SettingsError

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
_LABELS_HEADER = 8  # bytes of an IDX file with one axis
SIDE = 28  # height and width of every image, in pixels


@dataclass(frozen=True)
class File:
    """One IDX file; size and digest are those of its content after gunzip."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Declaration:
    """What a dataset promises. The class of label `i` is `classes[i]`."""

    name: str
    title: str
    classes: tuple[str, ...]
    files: dict[str, File]  # by role, see ROLES
    url: str | None = None  # folder on the web that serves the files
    debian_package: str | None = None  # carries the files in /usr/share/datasets/<name>
    images: dict[str, int] = field(default_factory=dict)  # how many there are in `train` and `test`

    def count(self, split: str) -> int:
        """How many images `train` or `test` has, by its own declaration or else by the size of its labels."""
        return self.images.get(split, self.files[f"{split}_labels"].bytes - _LABELS_HEADER)


def read_declaration(path: Path) -> Declaration:
    """Read and check a declaration; raises :class:`SettingsError` naming the file and what is wrong in it."""
    try:
        values = tomllib.loads(path.read_text())
        files = {role: File(**entry) for role, entry in values.pop("files").items()}
        declaration = Declaration(classes=tuple(values.pop("classes")), files=files, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"dataset declaration {path}: {error}") from error
    if set(declaration.files) != set(ROLES):
        raise SettingsError(f"dataset declaration {path}: needs the files {', '.join(ROLES)}")
    if declaration.url and not declaration.url.startswith("https://"):
        raise SettingsError(f"dataset declaration {path}: url must begin with https://")
    if not set(declaration.images) <= {"train", "test"}:
        raise SettingsError(f"dataset declaration {path}: images has {', '.join(declaration.images)}; use train, test")
    if not 2 <= len(declaration.classes) <= 256:
        raise SettingsError(f"dataset declaration {path}: {len(declaration.classes)} classes; labels hold 2 to 256")
    return declaration
