"""The images of new batches that are set aside for review, or a batch that has too many of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fmnist_tasks.registry import champion
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.data import Dataset, ImageSet, NewBatch, StoredReviewPart
from fmnist_tasks.schemas.policy import ReviewPolicy
from fmnist_tasks.serving.release import Release, open_release

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.image_checks import Limits, Predictions
    from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """What becomes of the images of a batch."""

    image_set: ImageSet  # the images that continue
    set_aside: int = 0
    review: list[StoredReviewPart] = field(default_factory=list)
    rejection: str | None = None  # why the whole batch is rejected


@dataclass(frozen=True)
class KnownImages:
    """The images that a batch must not repeat, with a name for each set of them."""

    names: list[str]
    arrays: list[np.ndarray]  # uint8 (N, …)

    @cached_property
    def index(self) -> NearDuplicateIndex:
        """An index of all images, in order."""
        import numpy as np

        from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

        return NearDuplicateIndex(np.concatenate(self.arrays))

    def get(self, position: int) -> tuple[str, np.ndarray]:
        """Return a description of an image, and its pixels."""
        for name, array in zip(self.names, self.arrays, strict=True):
            if position < len(array):
                return f"{name} {position + 1:,}", array[position]
            position -= len(array)
        raise IndexError(position)


class Examiner:
    """Examines the batches of a run, with the champion if there is one of the same dataset."""

    def __init__(self, store: Store, dataset: Dataset, policy: ReviewPolicy, known: KnownImages) -> None:
        self._store, self._dataset, self._policy, self._known = store, dataset, policy, known

    def examine(self, batch: NewBatch, images: np.ndarray, labels: np.ndarray) -> tuple[Examination, np.ndarray]:
        """Examine a batch with images uint8 (N, …) and labels (N,); save the images that are set aside.

        Also returns whether each image continues, bool (N,).
        """
        import numpy as np

        from fmnist_tasks.data.dataset import store_images
        from fmnist_tasks.data.image_checks import explain_rejection, find_images_to_review
        from fmnist_tasks.data.review import store_parts

        classes = self._dataset.classes
        continues = np.ones(len(images), bool)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
            return Examination(batch.image_set), continues  # the data checks reject it
        copies = self._known.index.find(images).neighbours
        known = [self._known.get(position) if position >= 0 else None for position in copies.tolist()]
        findings = find_images_to_review(
            labels,
            classes,
            copies,
            [f"copy or near-duplicate of {found[0]}" if found else "" for found in known],
            self._predict(images),
            self._limits,
        )
        count, total = len(findings) + len(batch.unreadable), len(images) + len(batch.unreadable)
        if rejection := explain_rejection(count, total, self._policy):
            return Examination(batch.image_set, count, rejection=rejection), continues
        if not findings:
            return Examination(batch.image_set, count), continues
        blank = np.zeros(self._dataset.image_format.shape, np.uint8)
        neighbours = np.stack([found[1] if (found := known[finding.row]) else blank for finding in findings])
        continues[[finding.row for finding in findings]] = False
        review = store_parts(self._store, images, labels, findings, neighbours)
        rest = store_images(
            self._store,
            "train",
            batch.image_set.source,
            images[continues],
            labels[continues],
            keys=batch.image_set.keys,
        )
        return Examination(rest, count, review), continues

    @cached_property
    def _champion(self) -> Release | None:
        entry = champion.find_champion(self._store)
        if entry is None:
            return None
        release = open_release(self._store, entry.version)
        theirs, own = release.manifest.dataset, self._dataset
        if (theirs.name, theirs.classes, theirs.image_format) != (own.name, own.classes, own.image_format):
            return None  # detect_change refuses the run
        return release

    @cached_property
    def _limits(self) -> Limits | None:
        from fmnist_tasks.data.dataset import load_validation_split
        from fmnist_tasks.data.image_checks import Limits

        images, labels = load_validation_split(self._store, self._dataset)
        predictions = self._predict(images)
        return None if predictions is None else Limits.choose(predictions, labels, self._policy)

    def _predict(self, images: np.ndarray) -> Predictions | None:
        from fmnist_tasks.data.image_checks import Predictions

        if self._champion is None:
            return None
        from fmnist_tasks.model import h5

        return Predictions(*h5.predict(self._champion.model, images))
