"""Dataset declarations (`include/datasets/*.toml`): classes, and the size and digest of each file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.toml_files import read_toml

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
_LABELS_HEADER = 8  # bytes of the header of an IDX file with one axis
SIDE = 28  # height and width of every image, in pixels


@dataclass(frozen=True)
class File:
    """One IDX file; size and digest are those of its content after gunzip."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Declaration:
    """A declared dataset. The class of label `i` is `classes[i]`."""

    name: str
    title: str
    classes: tuple[str, ...]
    files: dict[str, File]  # by role, see ROLES
    url: str | None = None  # folder on the web that has the files
    debian_package: str | None = None  # that has the files in /usr/share/datasets/<name>
    images: dict[str, int] = field(default_factory=dict)  # number of images in `train` and `test`

    def count_images(self, split: str) -> int:
        """Return the number of images in `train` or `test`: as declared, or else from the size of the labels."""
        return self.images.get(split, self.files[f"{split}_labels"].bytes - _LABELS_HEADER)


def read_declaration(path: Path) -> Declaration:
    """Read and validate a declaration; raises :class:`SettingsError` naming the file and the fault."""
    values = read_toml(path, "FMNIST_DATASET")
    try:
        files = {role: File(**entry) for role, entry in values.pop("files").items()}
        declaration = Declaration(classes=tuple(values.pop("classes")), files=files, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"dataset declaration {path}: {error}") from error
    if set(declaration.files) != set(ROLES):
        raise SettingsError(f"dataset declaration {path}: needs the files {', '.join(ROLES)}")
    if declaration.url and not declaration.url.startswith("https://"):
        raise SettingsError(f"dataset declaration {path}: url must begin with https://")
    if unknown := sorted(set(declaration.images) - {"train", "test"}):
        raise SettingsError(f"dataset declaration {path}: images: unknown key {', '.join(unknown)}; use train and test")
    if not 2 <= len(declaration.classes) <= 256:
        raise SettingsError(f"dataset declaration {path}: has {len(declaration.classes)} classes; use 2 to 256")
    return declaration
