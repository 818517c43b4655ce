"""Examine batches: set images of a new one aside for review, and recheck the accepted ones of each source together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING

from fmnist_tasks.errors import RejectedError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.releases import describe_differences, read_manifest
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import Dataset, ImageSet, NewBatch, StoredReviewShard
from fmnist_tasks.schemas.evaluation import Check
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.serving.release import Release, open_release

if TYPE_CHECKING:
    import numpy as np

    from fmnist_tasks.data.accepted_batches import AcceptedBatch
    from fmnist_tasks.data.image_checks import ChampionPredictions, KnownImage, ReviewThresholds
    from fmnist_tasks.data.recheck import SourceStatistics

    Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, …), labels (N,)


_MAX_INDEXED = 1_000_000  # images of batches; each takes up to 3 kB of memory


@dataclass(frozen=True)
class Examination:
    """What becomes of the images of a new batch."""

    image_set: ImageSet  # the images that continue
    review: list[StoredReviewShard] = field(default_factory=list)
    quarantine_reason: str | None = None  # of the whole batch


class KnownImages:
    """The images that a new batch must not repeat: those of the test split, of the training split, and of batches."""

    def __init__(self, test: np.ndarray, training: np.ndarray) -> None:
        """Index the images of the splits, uint8 (N, …)."""
        from fmnist_tasks.data.near_duplicates import NearDuplicateIndex

        self._test = test
        self._index = NearDuplicateIndex(test, training, training[:0])
        self._sources: list[
            tuple[str, str, int, Callable[[], np.ndarray]]
        ] = [  # what an image is, to which batch it belongs, how many there are, and how to load them
            ("test image", "", len(test), lambda: test),
            ("training image", "", len(training), lambda: training),
        ]

    def __len__(self) -> int:
        """The number of images."""
        return len(self._index)

    def add(self, name: str, load: Callable[[], np.ndarray]) -> None:
        """Add the images of a batch, uint8 (N, …). They are not kept, but loaded again to show one of them."""
        images = load()
        self._index.add(images)
        self._sources.append(("image", f" of {name}", len(images), load))

    def find_near_duplicates(self, images: np.ndarray) -> list[KnownImage | None]:
        """Return a near-duplicate of each image of a new batch, uint8 (N, …), if there is one.

        Test images come before others. In the batch itself, only earlier images count.
        """
        import numpy as np

        from fmnist_tasks.data.image_checks import KnownImage

        positions = self._index.find_new(images).positions
        found: list[KnownImage | None] = [None] * len(images)
        start = 0
        sources = [*self._sources, ("image", " of the same batch", len(images), lambda: images)]
        for number, (kind, batch, count, load) in enumerate(sources):
            rows = np.flatnonzero((positions >= start) & (positions < start + count)).tolist()
            pixels = load() if rows else images
            for row in rows:
                position = int(positions[row]) - start
                description = f"{kind} {position + 1:,}{batch}"
                found[row] = KnownImage(description, pixels[position].copy(), is_test=number == 0)
            start += count
        return found

    def count_near_duplicates(self, images: np.ndarray, positions: np.ndarray) -> int:
        """Return how many known images, uint8 (N, …), at these positions (N,), have a near-duplicate before them."""
        return int((self._index.find(images, own=positions).positions >= 0).sum())

    def find_test_images_in_training(self) -> list[int]:
        """Return the rows of the test images that have a near-duplicate in the training split."""
        positions = self._index.find(self._test, group=1).positions
        return [int(row) for row in (positions >= 0).nonzero()[0]]


class Examiner:
    """Examines the batches of a run, with the champion if there is one of the same dataset."""

    def __init__(self, store: Store, dataset: Dataset, policy: Policy, training: Arrays, test: Arrays) -> None:
        self._store, self._dataset, self._policy = store, dataset, policy
        self._training, self._test = training, test
        self._starts: dict[str, int] = {}  # of indexed batches, by digest: the position of the first image

    def examine(self, batch: NewBatch, images: np.ndarray, labels: np.ndarray) -> tuple[Examination, np.ndarray]:
        """Examine a new batch with images uint8 (N, …) and labels (N,); save the images that are set aside.

        Also returns whether each image continues, bool (N,).
        """
        import numpy as np

        from fmnist_tasks.data.dataset import save_images
        from fmnist_tasks.data.image_checks import find_image_findings, find_quarantine_reason
        from fmnist_tasks.data.review import save_review_shards

        classes = self._dataset.classes
        continues = np.ones(len(images), bool)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
            return Examination(batch.image_set), continues  # the data checks reject it
        near_duplicates = self._known.find_near_duplicates(images)
        findings = find_image_findings(labels, classes, near_duplicates, self._predict(images), self._thresholds)
        total = len(images) + batch.unreadable
        review_policy, thresholds = self._policy.review, self._thresholds
        expected = thresholds.compute_expected_share(review_policy) if thresholds else review_policy.expected_share
        if reason := find_quarantine_reason(findings, batch.unreadable, total, review_policy, expected):
            return Examination(batch.image_set, quarantine_reason=reason), continues
        if not findings:
            return Examination(batch.image_set), continues
        continues[[finding.row for finding in findings]] = False
        review = save_review_shards(self._store, images, labels, findings)
        source, keys = batch.image_set.source, batch.image_set.keys
        rest = save_images(self._store, "train", source, images[continues], labels[continues], keys=keys)
        return Examination(rest, review), continues

    def add_batch(self, name: str, image_set: ImageSet) -> None:
        """Add the images of a batch that this run accepts to those that later ones must not repeat."""
        self._known.add(name, partial(self._load_pixels, image_set))

    def find_test_images_in_training(self) -> list[int]:
        """Return the rows of the test images that have a near-duplicate in the training split."""
        return self._known.find_test_images_in_training()

    def recheck(self) -> dict[str, list[Check]]:
        """Check a sample of all accepted batches of each source together, and images that were kept in review."""
        from fmnist_tasks.data.recheck import check_source, check_test_copies, group_by_source

        sources = group_by_source(self._dataset.batches)
        label_rate = self._thresholds.label_false_alarm_rate if sources and self._thresholds else 0.0
        checks = {
            f"source {source}": check_source(
                self._measure(image_sets), self._policy.recheck, self._policy.review, label_rate
            )
            for source, image_sets in sources.items()
        }
        if kept := [image_set for image_set in self._dataset.batches if not image_set.keys]:
            copies = sum(self._count_test_copies(self._load(image_set)[0]) for image_set in kept)
            checks["images added after review"] = [check_test_copies(copies)]
        return checks

    def _measure(self, image_sets: Sequence[ImageSet]) -> SourceStatistics:
        import numpy as np

        from fmnist_tasks.data.drift import compare_features, compute_features
        from fmnist_tasks.data.image_checks import compute_margins
        from fmnist_tasks.data.recheck import SourceStatistics, choose_sample

        chosen = choose_sample([image_set.images for image_set in image_sets], self._policy.recheck.sample_size)
        known, copies = self._known, 0  # which sets `_starts`
        parts = []
        for image_set, rows in zip(image_sets, chosen, strict=True):
            images, labels = self._load(image_set)
            copies += self._count_test_copies(images)
            # A batch that is not indexed is older than those that are, so only the splits count.
            start = self._starts.get(image_set.blob.sha256)
            positions = rows * 0 + self._first_position if start is None else start + rows
            parts.append((images[rows], labels[rows], positions))
        images, labels, positions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        predictions, thresholds = self._predict(images), self._thresholds
        doubtful = None
        if predictions is not None and thresholds is not None:
            doubtful = int((compute_margins(predictions.probabilities, labels) < thresholds.margins[labels]).sum())
        features = compare_features(compute_features(images), labels, *self._reference)
        drifted = max(features, key=lambda feature: feature.distance)
        return SourceStatistics(
            images=len(images),
            test_copies=copies,
            doubtful=doubtful,
            near_duplicates=known.count_near_duplicates(images, positions),
            drift=drifted.distance,
            drift_p_value=drifted.p_distance,
        )

    def _count_test_copies(self, images: np.ndarray) -> int:
        from fmnist_tasks.data.duplicates import compute_digests, find_duplicates

        return int(find_duplicates(compute_digests(images), self._test_digests).sum())

    @cached_property
    def _test_digests(self) -> set[bytes]:
        from fmnist_tasks.data.duplicates import compute_digests

        return set(compute_digests(self._test[0]))

    def _choose_indexed(self, accepted: Sequence[AcceptedBatch]) -> list[ImageSet]:
        """The batches of the dataset that new ones are compared with: the newest, oldest first."""
        times = {batch.image_set.blob.sha256: batch.accepted for batch in accepted}
        now = datetime.max.replace(tzinfo=UTC)  # for images from review, which have no document of acceptance
        newest_first = sorted(
            self._dataset.batches, key=lambda image_set: times.get(image_set.blob.sha256, now), reverse=True
        )
        chosen: list[ImageSet] = []
        count = 0
        for image_set in newest_first:
            count += image_set.images
            if count > _MAX_INDEXED and chosen:
                break
            chosen.append(image_set)
        return chosen[::-1]

    @cached_property
    def _known(self) -> KnownImages:
        """The splits, the newest batches, and what withdrawn ones contained, also the images set aside."""
        from fmnist_tasks.data.accepted_batches import list_accepted
        from fmnist_tasks.data.incoming import PREFIX

        known = KnownImages(self._test[0], self._training[0])
        accepted = list_accepted(self._store)
        for image_set in self._choose_indexed(accepted):
            self._starts[image_set.blob.sha256] = len(known)
            known.add(image_set.source.removeprefix(PREFIX), partial(self._load_pixels, image_set))
        for name, load in self._list_withdrawn(accepted):
            if load().shape[1:] == self._test[0].shape[1:]:  # not if the declaration has changed since
                known.add(name, load)
        return known

    def _list_withdrawn(self, accepted: Sequence[AcceptedBatch]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """Yield the names of withdrawn batches, and what loads their images; those set aside are apart."""
        from fmnist_tasks.data.dataset import load_images
        from fmnist_tasks.data.review import read_pixels

        def load_batch(image_set: ImageSet) -> np.ndarray:
            return load_images(self._store, image_set)[0]

        def load_shard(arrays: Reference) -> np.ndarray:
            return read_pixels(self._store, arrays)[0]

        own = {image_set.blob.sha256 for image_set in self._dataset.batches}
        for batch in accepted:
            if batch.withdrawal:
                name = f"the withdrawn batch {batch.name}"
                if batch.image_set.images and batch.image_set.blob.sha256 not in own:
                    yield name, partial(load_batch, batch.image_set)
                for shard in batch.document.review:
                    yield name, partial(load_shard, shard.arrays)

    @property
    def _first_position(self) -> int:
        """The position of the first image of a batch among known ones."""
        return len(self._test[0]) + len(self._training[0])

    def _load_pixels(self, image_set: ImageSet) -> np.ndarray:
        return self._load(image_set)[0]

    def _load(self, image_set: ImageSet) -> Arrays:
        """Load an accepted batch; raises :class:`RejectedError` if it does not fit the dataset, which has changed."""
        from fmnist_tasks.data.dataset import load_images

        images, labels = load_images(self._store, image_set)
        shape, classes = self._dataset.image_format.shape, len(self._dataset.classes)
        if images.shape[1:] != shape or (len(labels) and labels.max() >= classes):
            raise RejectedError(
                f"the accepted batch {image_set.source} has images of the shape {_describe_shape(images.shape[1:])} "
                f"and class indices up to {labels.max()}, but the declaration now has images of the shape "
                f"{_describe_shape(shape)} and {classes} classes: withdraw the batch, or give the new dataset another "
                "name"
            )
        return images, labels

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
        if describe_differences(read_manifest(self._store, entry.version), self._dataset):
            return None  # detect_change refuses the run
        return open_release(self._store, entry.version)

    @cached_property
    def _thresholds(self) -> ReviewThresholds | None:
        from fmnist_tasks.data.dataset import load_validation_split
        from fmnist_tasks.data.image_checks import ReviewThresholds

        images, labels = load_validation_split(self._store, self._dataset)
        predictions = self._predict(images)
        return None if predictions is None else ReviewThresholds.choose(predictions, labels, self._policy.review)

    def _predict(self, images: np.ndarray) -> ChampionPredictions | None:
        from fmnist_tasks.data.image_checks import ChampionPredictions

        if self._champion is None:
            return None
        from fmnist_tasks.model import h5

        return ChampionPredictions(*h5.predict(self._champion.model, images))


def _describe_shape(shape: tuple[int, ...]) -> str:
    """Such as "28 × 28" or "32 × 32 × 3"."""
    return " × ".join(map(str, shape))
