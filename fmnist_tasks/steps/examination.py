"""Examine batches: which images of a new one are set aside for review, and what the accepted ones of a source have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fmnist_tasks.registry import champion
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.data import Dataset, ImageSet, NewBatch, StoredReviewPart
from fmnist_tasks.schemas.evaluation import Check
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.serving.release import Release, open_release

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.image_checks import Limits, Predictions
    from fmnist_tasks.data.near_duplicates import NearDuplicateIndex
    from fmnist_tasks.data.recheck import SourceFindings

    Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, …), labels (N,)


@dataclass(frozen=True)
class Examination:
    """What becomes of the images of a new batch."""

    image_set: ImageSet  # the images that continue
    set_aside: int = 0  # images in review
    review: list[StoredReviewPart] = field(default_factory=list)
    rejection: str | None = None  # why the whole batch is rejected


@dataclass(frozen=True)
class KnownImages:
    """The images that a new batch must not repeat: the test split, the training split, and each accepted batch."""

    names: list[str]  # of the sets, for messages
    sets: list[Arrays]

    @cached_property
    def _indexes(self) -> list[NearDuplicateIndex]:
        """One for the test split, the training split, and all accepted batches."""
        import numpy as np

        from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

        images = [array for array, _ in self.sets]
        groups = [*images[:2], *([np.concatenate(images[2:])] if images[2:] else [])]
        return [NearDuplicateIndex(group) for group in groups]

    def find_near_duplicates(self, images: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Return the position of a near-duplicate of each image in all sets, or -1; int (N,). A test image comes first.

        `own` are the positions of the images, if they are in the sets of accepted batches themselves.
        """
        import numpy as np

        found = np.full(len(images), -1)
        for number, index in enumerate(self._indexes):
            rows, start = np.flatnonzero(found < 0), self.count_before(number)
            own_rows = own[rows] - start if own is not None and number == 2 else None
            neighbours = index.find(images[rows], own=own_rows).neighbours
            found[rows] = np.where(neighbours >= 0, neighbours + start, -1)
        return found

    def find_test_images_in_training(self) -> np.ndarray:
        """Return the rows of the test images that have a near-duplicate in the training split; int."""
        import numpy as np

        return np.flatnonzero(self._indexes[1].find(self.sets[0][0]).neighbours >= 0)

    def count_before(self, number: int) -> int:
        """Return the position of the first image of a set."""
        return sum(len(labels) for _, labels in self.sets[:number])

    def describe(self, position: int) -> tuple[str, np.ndarray]:
        """Return a description of an image, and its pixels."""
        for name, (images, _) in zip(self.names, self.sets, strict=True):
            if position < len(images):
                return name.format(position + 1), images[position]
            position -= len(images)
        raise IndexError(position)


class Examiner:
    """Examines the batches of a run, with the champion if there is one of the same dataset."""

    def __init__(self, store: Store, dataset: Dataset, policy: Policy, training: Arrays, test: Arrays) -> None:
        self._store, self._dataset, self._policy = store, dataset, policy
        self._training, self._test = training, test

    def examine(self, batch: NewBatch, images: np.ndarray, labels: np.ndarray) -> tuple[Examination, np.ndarray]:
        """Examine a new batch with images uint8 (N, …) and labels (N,); save the images that are set aside.

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
        neighbours = self._known.find_near_duplicates(images)
        known = [self._known.describe(position) if position >= 0 else None for position in neighbours.tolist()]
        findings = find_images_to_review(
            labels,
            classes,
            neighbours,
            [found[0] if found else "" for found in known],
            (neighbours >= 0) & (neighbours < self._known.count_before(1)),
            self._predict(images),
            self._limits,
        )
        count, total = len(findings) + len(batch.unreadable), len(images) + len(batch.unreadable)
        if rejection := explain_rejection(count, total, self._policy.review):
            return Examination(batch.image_set, rejection=rejection), continues
        if not findings:
            return Examination(batch.image_set), continues
        blank = np.zeros(self._dataset.image_format.shape, np.uint8)
        pictures = np.stack([found[1] if (found := known[finding.row]) else blank for finding in findings])
        continues[[finding.row for finding in findings]] = False
        review = store_parts(self._store, images, labels, findings, pictures)
        source, keys = batch.image_set.source, batch.image_set.keys
        rest = store_images(self._store, "train", source, images[continues], labels[continues], keys=keys)
        return Examination(rest, len(findings), review), continues

    def find_near_duplicates(self, images: np.ndarray) -> np.ndarray:
        """Return where the known images have a near-duplicate of each image, uint8 (N, …), or -1; int (N,)."""
        return self._known.find_near_duplicates(images)

    def find_test_images_in_training(self) -> list[int]:
        """Return the rows of the test images that have a near-duplicate in the training split."""
        return [int(row) for row in self._known.find_test_images_in_training()]

    def recheck(self) -> dict[str, list[Check]]:
        """Check a sample of all accepted batches of each source together; return the checks by source."""
        from fmnist_tasks.data.recheck import check_source, group_by_source

        sources = group_by_source(self._dataset.batches)
        return {
            source: check_source(self._find(image_sets), self._policy.recheck, self._policy.review)
            for source, image_sets in sources.items()
        }

    def _find(self, image_sets: Sequence[ImageSet]) -> SourceFindings:
        import numpy as np

        from fmnist_tasks.data.drift import compare_features, compute_features, measure_drift
        from fmnist_tasks.data.image_checks import compute_margins
        from fmnist_tasks.data.recheck import SourceFindings, choose_sample

        digests = [image_set.blob.sha256 for image_set in self._dataset.batches]
        numbers = [2 + digests.index(image_set.blob.sha256) for image_set in image_sets]
        sets = [self._known.sets[number] for number in numbers]
        chosen = choose_sample([len(labels) for _, labels in sets], self._policy.recheck.images)
        images = np.concatenate([array[rows] for (array, _), rows in zip(sets, chosen, strict=True)])
        labels = np.concatenate([array[rows] for (_, array), rows in zip(sets, chosen, strict=True)])
        own = np.concatenate(
            [self._known.count_before(number) + rows for number, rows in zip(numbers, chosen, strict=True)]
        )
        predictions, limits = self._predict(images), self._limits
        doubtful = None
        if predictions is not None and limits is not None:
            doubtful = int((compute_margins(predictions.probabilities, labels) < limits.margins[labels]).sum())
        features = compare_features(compute_features(images), labels, *self._reference)
        return SourceFindings(
            images=len(images),
            doubtful=doubtful,
            near_duplicates=int((self._known.find_near_duplicates(images, own) >= 0).sum()),
            drift=measure_drift(features),
        )

    @cached_property
    def _known(self) -> KnownImages:
        from fmnist_tasks.data.dataset import load_images
        from fmnist_tasks.data.incoming import PREFIX

        batches = self._dataset.batches
        sources = (batch.source.removeprefix(PREFIX).replace("{", "{{").replace("}", "}}") for batch in batches)
        names = ["test image {:,}", "training image {:,}", *(f"image {{:,}} of {source}" for source in sources)]
        accepted = (load_images(self._store, batch) for batch in batches)
        return KnownImages(names, [self._test, self._training, *accepted])

    @cached_property
    def _reference(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        from fmnist_tasks.data.drift import compute_features

        images, labels = self._training
        return compute_features(images), labels

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
        return None if predictions is None else Limits.choose(predictions, labels, self._policy.review)

    def _predict(self, images: np.ndarray) -> Predictions | None:
        from fmnist_tasks.data.image_checks import Predictions

        if self._champion is None:
            return None
        from fmnist_tasks.model import h5

        return Predictions(*h5.predict(self._champion.model, images))
