"""Images of accepted batches that were set aside, and the decisions about them.

An accepted batch refers to the images that were set aside, in shards. Each decision of a user about some of them is a
sealed document `reviews/SHA256/NUMBER.json`, created once and never changed; the last decision about an image counts.
Images that are kept or relabelled join the dataset of the next run; those that are dropped, or that nobody has decided
about, do not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from uuid import uuid4

import numpy as np
from pydantic import ValidationError

from fmnist_tasks.data.accepted_batches import AcceptedBatch, list_accepted
from fmnist_tasks.data.dataset import pack_arrays, save_images
from fmnist_tasks.data.image_checks import ImageFinding
from fmnist_tasks.data.npz import read_npz
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, SettingsError
from fmnist_tasks.registry.blobs import get_verified, open_verified, put_blob
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store, map_parallel, read_clock
from fmnist_tasks.schemas.base import Reference, describe_faults
from fmnist_tasks.schemas.data import ImageSet, ReviewDecision, ReviewEntry, ReviewShard, StoredReviewShard
from fmnist_tasks.settings import name_command
from fmnist_tasks.text import make_printable

log = logging.getLogger(__name__)

ReviewAction = Literal["keep", "relabel", "drop"]

_ID_DIGITS = 32  # of 64; nobody can make two batches with the same ones
_PREFIX = "reviews/"
_KEY = re.compile(rf"{_PREFIX}(?P<digest>[0-9a-f]{{64}})/(?P<number>[0-9]{{8}})\.json")
_SHARD_SIZE = 2_000  # images; the document of a shard stays below a megabyte
_CACHED_SHARDS = 1_000  # by digest; a process reads these once
_MAX_ATTEMPTS = 50  # of writing a decision, while others decide at the same time


@dataclass(frozen=True)
class ReviewImage:
    """An image that was set aside, where its pixels are, and the last decision about it."""

    batch: AcceptedBatch
    entry: ReviewEntry
    arrays: Reference
    position: int  # in the arrays
    decision: ReviewDecision | None

    @property
    def id(self) -> str:
        """A name for forms and commands: the digest of the batch, shortened, and the number of the image, from 1."""
        return f"{self.batch.sha256[:_ID_DIGITS]}-{self.entry.row + 1}"


def describe_decision(image: ReviewImage, classes: list[str]) -> str:
    """The decision about an image, as one sentence; empty if there is none."""
    decision = image.decision
    if decision is None:
        return ""
    words = {"keep": "kept", "drop": "dropped", "relabel": "relabelled"}[decision.action]
    new = f" as {classes[decision.label]}" if decision.label is not None else ""
    return f"{words}{new} by {decision.by} on {decision.time[:16].replace('T', ' ')} UTC"


def save_review_shards(
    store: Store, images: np.ndarray, labels: np.ndarray, findings: Sequence[ImageFinding]
) -> list[StoredReviewShard]:
    """Save the images of a batch that have findings, each with its near-duplicate, or zeros."""
    shards, blank = [], np.zeros_like(images[0])
    for start in range(0, len(findings), _SHARD_SIZE):
        chosen = findings[start : start + _SHARD_SIZE]
        rows = [finding.row for finding in chosen]
        near_duplicates = np.stack(
            [finding.near_duplicate.pixels if finding.near_duplicate else blank for finding in chosen]
        )
        with pack_arrays(images=images[rows], near_duplicates=near_duplicates) as file:
            arrays = put_blob(store, file)
        shard = ReviewShard(
            images=[
                ReviewEntry(
                    row=finding.row,
                    label=int(labels[finding.row]),
                    suggested=finding.suggested,
                    reasons=list(finding.reasons),
                    has_near_duplicate=finding.near_duplicate is not None,
                    is_near_duplicate_of_test=finding.near_duplicate is not None and finding.near_duplicate.is_test,
                )
                for finding in chosen
            ]
        )
        shards.append(StoredReviewShard(images=put_blob(store, shard.model_dump_json().encode()), arrays=arrays))
    return shards


def list_review_images(store: Store, batches: Iterable[AcceptedBatch] | None = None) -> list[ReviewImage]:
    """Return all images that were set aside, with decisions, newest batch first; not those of withdrawn batches.

    Raises :class:`IntegrityError` if a document is damaged or missing.
    """
    accepted = list_accepted(store) if batches is None else batches
    chosen = [batch for batch in accepted if batch.document.review and not batch.withdrawal]
    chosen.sort(key=lambda batch: batch.accepted, reverse=True)
    decisions = _read_decisions(store, {batch.sha256 for batch in chosen})
    shards = [(batch, shard) for batch in chosen for shard in batch.document.review]
    contents = map_parallel(lambda item: _read_shard(store, item[1].images), shards)
    return [
        ReviewImage(batch, image, shard.arrays, position, decisions[batch.sha256].get(image.row))
        for (batch, shard), content in zip(shards, contents, strict=True)
        for position, image in enumerate(content.images)
    ]


def read_pixels(store: Store, arrays: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a shard and a near-duplicate of each, both uint8 (N, …)."""
    with open_verified(store, arrays) as file:
        images, near_duplicates = read_npz(file, arrays.uri, "images", "near_duplicates")
    return images, near_duplicates


def save_reviewed_images(store: Store, images: Iterable[ReviewImage]) -> list[ImageSet]:
    """Save the images that users kept or relabelled, one set for each batch, for the dataset of a run."""
    chosen: dict[str, list[ReviewImage]] = {}
    for image in images:
        if image.decision and image.decision.action != "drop":
            chosen.setdefault(image.batch.sha256, []).append(image)
    sets = []
    for members in chosen.values():
        pixels, labels = [], []
        for arrays in dict.fromkeys(image.arrays.sha256 for image in members):
            own = [image for image in members if image.arrays.sha256 == arrays]
            shard, _ = read_pixels(store, own[0].arrays)
            pixels.append(shard[[image.position for image in own]])
            labels += [_choose_label(image) for image in own]
        source = f"review of {members[0].batch.name}"
        sets.append(save_images(store, "train", source, np.concatenate(pixels), np.array(labels, np.uint8)))
    return sets


def _choose_label(image: ReviewImage) -> int:
    decided = image.decision.label if image.decision else None
    return image.entry.label if decided is None else decided


def _record_decision(
    store: Store, batch: AcceptedBatch, rows: Sequence[int], action: ReviewAction, *, by: str, label: int | None = None
) -> ReviewDecision:
    """Record a decision about images of a batch, named by their rows.

    Raises :class:`MissingError` if one of them was not set aside.
    """
    known = {image.row for shard in batch.document.review for image in _read_shard(store, shard.images).images}
    if unknown := sorted(set(rows) - known):
        raise MissingError(
            f"image {unknown[0] + 1} of batch {batch.name} was not set aside, so there is nothing to decide"
        )
    for _ in range(_MAX_ATTEMPTS):
        number = max((_parse_number(stat.key) for stat in store.list(f"{_PREFIX}{batch.sha256}/")), default=0) + 1
        decision = ReviewDecision(
            batch=batch.sha256,
            number=number,
            action=action,
            images=sorted(set(rows)),
            label=label,
            by=make_printable(by),
            time=read_clock(store).isoformat(),
            write_id=str(uuid4()),
        )
        key, document = _make_key(batch.sha256, number), decision.to_json()
        if store.put_if_absent(key, seal(document)) or read_document(store, key) == document:
            return decision
    raise ConflictError(f"other users are reviewing batch {batch.name} at the same time; try again")


def record_decisions(
    store: Store, classes: Sequence[str], ids: Sequence[str], action: ReviewAction, label: int | None, *, by: str
) -> list[ReviewDecision]:
    """Record a decision about images with these IDs, one document for each batch.

    `label` is the new class, required to relabel. Raises :class:`MissingError` if an image is not in review, and
    :class:`SettingsError` if no image is named, if the label is missing or not a class, or if an image can only be
    dropped.
    """
    if not ids:
        raise SettingsError("select at least one image")
    if action == "relabel" and (label is None or not 0 <= label < len(classes)):
        raise SettingsError("choose a new label before you relabel")
    by_id = {image.id: image for image in list_review_images(store)}
    if missing := [name for name in ids if name not in by_id]:
        raise MissingError(
            f"no image in review has the ID {missing[0][:80]}; {name_command(store.dataset, 'review list')} lists them"
        )
    near_test = [name for name in ids if by_id[name].entry.is_near_duplicate_of_test]
    if near_test and action != "drop":
        raise SettingsError(
            f"{', '.join(near_test[:5])}: near-duplicates of test images would make the test accuracy too high and can "
            "only be dropped; nothing was decided"
        )
    chosen: dict[str, list[ReviewImage]] = {}
    for name in ids:
        chosen.setdefault(by_id[name].batch.sha256, []).append(by_id[name])
    return [
        _record_decision(
            store,
            images[0].batch,
            [image.entry.row for image in images],
            action,
            by=by,
            label=label if action == "relabel" else None,
        )
        for images in chosen.values()
    ]


@lru_cache(_CACHED_SHARDS)  # the Review view reads all of them for each response
def _read_shard(store: Store, reference: Reference) -> ReviewShard:
    try:
        return ReviewShard.model_validate_json(get_verified(store, reference))
    except ValidationError as error:
        raise IntegrityError(f"{reference.uri}: {describe_faults(error)}; it is not used") from error


def _read_decisions(store: Store, batches: set[str]) -> dict[str, dict[int, ReviewDecision]]:
    """Return the last decision about each image, by batch and row."""
    keys = [stat.key for stat in store.list(_PREFIX)]
    chosen = [key for key in keys if (match := _KEY.fullmatch(key)) and match["digest"] in batches]
    numbers: dict[str, list[int]] = {}
    for key in chosen:
        numbers.setdefault(key.split("/")[1], []).append(_parse_number(key))
    for digest, found in numbers.items():
        if missing := set(range(1, max(found))) - set(found):
            raise IntegrityError(
                f"{_make_key(digest, min(missing))} is missing, but there are later decisions about this batch; "
                "restore it from a backup or an earlier version of the object"
            )
    last: dict[str, dict[int, ReviewDecision]] = {digest: {} for digest in batches}
    for key, decision in zip(chosen, map_parallel(lambda key: _read_decision(store, key), chosen), strict=True):
        if key != _make_key(decision.batch, decision.number):
            raise IntegrityError(
                f"{key} is decision {decision.number} about batch {decision.batch[:12]}, so it was copied or renamed; "
                "it is not used. Delete the copy, and restore the original if it is missing"
            )
        last[decision.batch] |= dict.fromkeys(decision.images, decision)
    return last


def _read_decision(store: Store, key: str) -> ReviewDecision:
    return ReviewDecision.parse(read_document(store, key), key)


def _parse_number(key: str) -> int:
    match = _KEY.fullmatch(key)
    return int(match["number"]) if match else 0


def _make_key(digest: str, number: int) -> str:
    return f"{_PREFIX}{digest}/{number:08d}.json"
