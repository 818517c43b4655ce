"""Dataset declarations (`include/datasets/*.toml`): what the dataset is, and the size and digest of each file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.schemas.base import Count, Model, Sha256, describe_faults
from fmnist_tasks.schemas.data import DatasetProperties, Split
from fmnist_tasks.settings import Settings
from fmnist_tasks.toml_files import read_toml

Role = Literal["train_images", "train_labels", "test_images", "test_labels"]
ROLES: tuple[Role, ...] = ("train_images", "train_labels", "test_images", "test_labels")
_LABELS: dict[Split, Role] = {"train": "train_labels", "test": "test_labels"}
_LABELS_HEADER = 8  # bytes of the header of an IDX file with one axis


class File(Model):
    """One IDX file; size and digest are those of its content after gunzip."""

    name: Annotated[str, Field(pattern=r"^[^/]+$")]
    bytes: Count
    sha256: Sha256


class Declaration(DatasetProperties):
    """A declared dataset. The class of label `i` is `classes[i]`."""

    title: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
    gates: Annotated[str, Field(pattern=r"^[^/]+(/[^/]+)*$")] | None = None  # the policy file, relative to this one
    files: dict[Role, File]
    url: Annotated[str, Field(pattern=r"^https://")] | None = None  # folder on the web that has the files
    debian_package: str | None = None  # that has the files in /usr/share/datasets/<name>
    images: dict[Split, Count] = Field(default_factory=dict)  # declared number of images of each split
    _folder: Path = PrivateAttr(default=Path())  # of the declaration

    @property
    def data_folder(self) -> Path:
        """The folder beside the declaration that may have the dataset's files."""
        return self._folder / self.name

    def find_gates(self, default: Path) -> Path:
        """The policy file of this dataset, or else the default one."""
        return self._folder / self.gates if self.gates else default

    def count_images(self, split: Split) -> int:
        """Return the number of images of a split: as declared, or else from the size of the labels."""
        return self.images.get(split, self.files[_LABELS[split]].bytes - _LABELS_HEADER)

    @model_validator(mode="after")
    def _require_files(self) -> Self:
        if missing := [role for role in ROLES if role not in self.files]:
            raise ValueError(f"files lacks {', '.join(missing)}")
        return self


def load_declaration(settings: Settings, dataset: str) -> Declaration:
    """Read the declaration of a dataset in `FMNIST_DATASETS`, or with an empty name the default one.

    Raises :class:`SettingsError` if there is none, if it is invalid, or if it is that of another dataset.
    """
    declaration = read_declaration(path := settings.find_declaration(dataset))
    if dataset and declaration.name != dataset:
        raise SettingsError(
            f"dataset declaration {path}: name is {declaration.name!r}, not that of the file, {dataset!r}"
        )
    return declaration


def read_declaration(path: Path) -> Declaration:
    """Read and validate a declaration; raises :class:`SettingsError` naming the file and each fault."""
    try:
        declaration = Declaration.model_validate(read_toml(path, "FMNIST_DATASET"))
    except ValidationError as error:
        raise SettingsError(
            f"dataset declaration {path}: {describe_faults(error)}; docs/own-data.md lists all keys"
        ) from error
    declaration._folder = path.parent
    return declaration
