"""The dataset and its batches, in records, manifests and `batches/`."""

from __future__ import annotations

import math
import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fmnist_tasks.schemas.base import Count, Document, Model, Reference, Sha256, Time

Action = Literal["withdraw", "restore"]
Split = Literal["train", "test"]
MIN_SIDE, MAX_SIDE = 8, 96  # pixels, of an image
MAX_CLASS_NAME = 100  # characters
PREDICTION_COLUMNS = ("image", "answer", "class", "probability", "ood_score", "looks_inverted", "release")
_RESERVED_NAMES = {*PREDICTION_COLUMNS, "error"}  # the columns of a prediction beside one for each class


def normalize_class_name(name: str) -> str:
    """Return the name with composed characters (Unicode NFC), since file systems and keyboards differ in them."""
    return unicodedata.normalize("NFC", name)


def _require_visible(name: str) -> str:
    if not name.strip():
        raise ValueError("a name cannot consist of spaces")
    return name


ClassName = Annotated[
    str,
    Field(pattern=rf"^[^\x00-\x1f\x7f]{{1,{MAX_CLASS_NAME}}}$"),
    AfterValidator(normalize_class_name),
    AfterValidator(_require_visible),
]


def _require_different(classes: list[str]) -> list[str]:
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        raise ValueError(f"several classes have the name {', '.join(repeated)}")
    if reserved := sorted(_RESERVED_NAMES.intersection(classes)):
        raise ValueError(f"a class cannot have the name {', '.join(reserved)}, which is a column of predictions")
    return classes


class ImageFormat(Model):
    """The images of a dataset, and which changes of an image preserve its meaning."""

    height: Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
    width: Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
    channels: Literal[1, 3]  # greyscale, or red, green and blue
    horizontal_flip: bool  # whether a flipped image has the same label
    upright: bool  # whether a rotated image is out of distribution
    background: Annotated[int, Field(ge=0, le=255)] | None = None  # shade around the object, 0: black; None: none

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: (H, W), or (H, W, 3)."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    @property
    def pixels(self) -> int:
        """The number of bytes of an image."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{'greyscale' if self.channels == 1 else 'colour'}, {self.height} × {self.width} pixels"


class DatasetProperties(Model):
    """What a dataset is, whatever its images: its classes, the format of its images, and what is unlike them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=256), AfterValidator(_require_different)]
    image_format: ImageFormat
    image_description: str | None = None  # what an image shows and how, for users who prepare their own
    ood_label: ClassName  # the answer for an out-of-distribution image
    excluded_families: list[str] = Field(default_factory=list)  # OOD families that resemble the dataset

    @model_validator(mode="after")
    def _require_distinct_answers(self) -> Self:
        if self.ood_label in self.classes:
            raise ValueError(f"ood_label, {self.ood_label!r}, is also the name of a class")
        return self


class ImageSet(Model):
    """Labelled images in one blob: a split of the base dataset, or a batch."""

    split: Split
    source: str
    images: Count
    blob: Reference
    keys: list[str] = Field(default_factory=list)  # of a batch's files, below incoming/; of a folder, only its own


class Dataset(DatasetProperties):
    """The dataset of a run: the base splits, training and test, then the batches, which extend the training split."""

    image_sets: list[ImageSet]
    fingerprint: Sha256  # of properties and content

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
    converted: Count = 0  # images that had another size or colour mode
    unreadable: Count = 0  # images that cannot be read
    reasons: list[str] = Field(default_factory=list)  # for the first of them


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


class ReviewEntry(Model):
    """An image that was set aside, with its position in the arrays of its shard."""

    row: Count  # in the batch
    label: Count
    suggested: Count | None  # class that the champion predicts
    reasons: Annotated[list[str], Field(min_length=1)]
    has_near_duplicate: bool  # whether there is a near-duplicate
    is_near_duplicate_of_test: bool = False  # whether that is a test image, so this one must not be used for training


class ReviewShard(Model):
    """Some of the images of a batch that were set aside."""

    images: list[ReviewEntry]


class StoredReviewShard(Model):
    """Where a shard is: its JSON, and the arrays `images` and `near_duplicates`, .npz."""

    images: Reference
    arrays: Reference


class BatchDocument(Document):
    """`batches/SHA256.json`: an accepted batch. The digest is that of its content with the images set aside."""

    image_set: ImageSet  # without the images set aside
    submitted: Sha256
    review: list[StoredReviewShard] = Field(default_factory=list)

    @classmethod
    def migrate(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Version 0.2 set no images aside."""
        image_set = content.get("image_set")
        blob = image_set.get("blob") if isinstance(image_set, dict) else None
        return content | {"submitted": blob.get("sha256") if isinstance(blob, dict) else None}


class ReviewDecision(Document):
    """`reviews/SHA256/NUMBER.json`: a decision about images that were set aside."""

    batch: Sha256
    number: Annotated[int, Field(ge=1)]
    action: Literal["keep", "relabel", "drop"]
    images: Annotated[list[Count], Field(min_length=1)]  # rows of the batch
    label: Count | None = None  # the new one, if relabelled
    by: str
    time: Time  # by the store's clock
    write_id: str


class BatchDecision(Document):
    """`batches/SHA256/NUMBER.json`: the withdrawal or restoration of a batch."""

    batch: Sha256
    number: Annotated[int, Field(ge=1)]  # of the decisions about this batch
    action: Action
    by: str
    reason: str
    time: Time  # by the store's clock
    write_id: str  # identifies a write whose response was lost
