"""The dataset and its batches, in records, manifests and `batches/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmnist_tasks.schemas.base import Count, Document, Model, Reference, Sha256, Time

Action = Literal["withdraw", "restore"]
Split = Literal["train", "test"]


class ImageSet(Model):
    """Labelled images in one blob: a split of the base dataset, or a batch."""

    split: Split
    source: str
    images: Count
    blob: Reference
    keys: list[str] = Field(default_factory=list)  # of a batch's files, below incoming/


class Dataset(Model):
    """The dataset of a run: the base splits, training and test, then the batches, which extend the training split."""

    name: str
    classes: list[str]
    image_sets: list[ImageSet]
    fingerprint: Sha256  # of classes and content

    @property
    def base(self) -> ImageSet:
        """The training split of the base dataset."""
        return self.image_sets[0]

    @property
    def test(self) -> ImageSet:
        """The test split."""
        return self.image_sets[1]

    @property
    def batches(self) -> list[ImageSet]:
        """The batches."""
        return self.image_sets[2:]


class IncomingFile(Model):
    """A file below incoming/, with its version at the time of the listing."""

    key: str
    version: str
    bytes: Count
    modified: Time
    kind: str = "file"
    sha256: Sha256 | None = None  # None until it is read


class WaitingFile(Model):
    """A file that waits below incoming/ for the next run."""

    key: str
    reason: str
    needs_attention: bool = False  # a user has to do something about it


class NewBatch(Model):
    """A new batch that can be read."""

    name: str
    files: list[IncomingFile]
    image_set: ImageSet


class UnreadableBatch(Model):
    """A new batch that cannot be read."""

    name: str
    files: list[IncomingFile]
    reasons: list[str]


class QuarantinedBatch(Model):
    """A batch whose files are in quarantine/."""

    name: str
    reasons: list[str]
    location: str


class WithdrawnBatch(Model):
    """An accepted batch that a user withdrew."""

    name: str
    withdrawn: str  # a sentence: when, by whom and why


class BatchDocument(Document):
    """`batches/SHA256.json`: an accepted batch."""

    image_set: ImageSet


class BatchDecision(Document):
    """`batches/SHA256/NUMBER.json`: the withdrawal or restoration of a batch."""

    batch: Sha256
    number: Annotated[int, Field(ge=1)]  # of the decisions about this batch
    action: Action
    by: str
    reason: str
    time: Time  # by the store's clock
    write_id: str  # identifies a write whose response was lost
