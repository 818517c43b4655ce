"""Accepted batches and the decisions about them.

`batches/SHA256.json` is the sealed document of a batch and refers to its content. The same content counts once,
whatever its name. A withdrawn batch is excluded from the dataset from the next run on, and its content is not accepted
again. Each withdrawal or restoration is a sealed document `batches/SHA256/NUMBER.json`, created once and never changed;
the last one counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

from fmnist_tasks.data.incoming import PREFIX
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, RejectedError
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Stat, Store, encode_name, map_readable, read_clock
from fmnist_tasks.schemas.data import Action, BatchDecision, BatchDocument, ImageSet, StoredReviewShard
from fmnist_tasks.settings import name_command
from fmnist_tasks.text import make_printable

log = logging.getLogger(__name__)

_PREFIX = "batches/"
_KEY = re.compile(rf"{_PREFIX}(?P<digest>[0-9a-f]{{64}})(/[0-9]{{8}})?\.json")
_COPIED = "so it was copied or renamed; it is not used. Delete the copy, and restore the original if it is missing"
_MIN_DIGITS = 6  # of a SHA-256 that names a batch


@dataclass(frozen=True)
class AcceptedBatch:
    """A batch that was accepted, withdrawn or not."""

    document: BatchDocument
    accepted: datetime  # UTC, by the store's clock
    decisions: list[BatchDecision] = field(default_factory=list)  # oldest first

    @property
    def image_set(self) -> ImageSet:
        """Its images, without those that were set aside."""
        return self.document.image_set

    @property
    def sha256(self) -> str:
        """Digest of the content as it was submitted, which identifies the batch."""
        return self.document.submitted

    @property
    def name(self) -> str:
        """The displayed name under which it was accepted."""
        return self.image_set.source.removeprefix(PREFIX)

    @property
    def withdrawal(self) -> BatchDecision | None:
        """The decision that keeps it out of the dataset, if any."""
        last = self.decisions[-1] if self.decisions else None
        return last if last and last.action == "withdraw" else None

    def describe_withdrawal(self) -> str:
        """Return when, by whom and why it was withdrawn; empty if it was not."""
        decision = self.withdrawal
        return f"{decision.time[:16]} by {decision.by}: {decision.reason}" if decision else ""

    def to_json(self) -> dict[str, Any]:
        """Return a row for tables and JSON output."""
        return {
            "batch": self.name,
            "sha256": self.sha256,
            "images": self.image_set.images,
            "accepted": self.accepted.isoformat(timespec="seconds"),
            "withdrawn": self.describe_withdrawal(),
        }


def list_accepted(store: Store) -> list[AcceptedBatch]:
    """Return all batches that were ever accepted, by digest, with their decisions.

    Raises :class:`IntegrityError`, or what the store raises, if the document of a batch or of a decision is damaged,
    missing, or was copied or renamed.
    """
    batches, faults = find_accepted(store)
    if faults:
        raise faults[0]
    return batches


def find_accepted(store: Store) -> tuple[list[AcceptedBatch], list[Exception]]:
    """Return the batches of :func:`list_accepted` whose documents are intact, and the faults of the others."""
    stats: dict[str, list[Stat]] = {}
    for stat in store.list(_PREFIX):
        if match := _KEY.fullmatch(stat.key):
            stats.setdefault(match["digest"], []).append(stat)
    return map_readable(partial(_read_batch, store), stats.items())


def _read_batch(store: Store, item: tuple[str, list[Stat]]) -> AcceptedBatch:
    """Return a batch from its digest and objects: its document, which is listed first, and the decisions about it."""
    digest, (first, *others) = item
    key = f"{_PREFIX}{digest}.json"
    if first.key != key:
        raise IntegrityError(f"{key} is missing, but there are decisions about this batch; restore it from a backup")
    try:
        document = BatchDocument.parse(read_document(store, key), key)
    except MissingError as error:  # deleted since it was listed
        raise IntegrityError(f"{key} was deleted while it was read; restore it from a backup") from error
    if document.submitted != digest:
        raise IntegrityError(f"{key} is the document of batch {document.submitted[:12]}, {_COPIED}")
    decisions = [_read_decision(store, digest, number, stat.key) for number, stat in enumerate(others, 1)]
    return AcceptedBatch(document, first.modified, decisions)


def _read_decision(store: Store, digest: str, number: int, key: str) -> BatchDecision:
    """Return the decision at a key, which must be the one with this number about the batch with this digest."""
    if key != (expected := _make_decision_key(digest, number)):
        raise IntegrityError(
            f"{expected} is missing, but {key} exists; restore it from a backup or an earlier version of the object"
        )
    decision = BatchDecision.parse(read_document(store, key), key)
    if key != _make_decision_key(decision.batch, decision.number):
        raise IntegrityError(f"{key} is decision {decision.number} about batch {decision.batch[:12]}, {_COPIED}")
    return decision


def _make_decision_key(digest: str, number: int) -> str:
    return f"{_PREFIX}{digest}/{number:08d}.json"


def accept_batch(store: Store, image_set: ImageSet, submitted: str, review: Sequence[StoredReviewShard] = ()) -> None:
    """Add a batch to the dataset, except the images set aside; no error if it was added before.

    `submitted` is the digest (SHA-256) of its whole content.
    """
    document = BatchDocument(image_set=image_set, submitted=submitted, review=list(review)).to_json()
    store.put_if_absent(f"{_PREFIX}{submitted}.json", seal(document))


def withdraw_batch(store: Store, name: str, *, by: str, reason: str) -> AcceptedBatch:
    """Remove a batch, named by its file or its SHA-256, from the dataset from the next run on.

    Raises :class:`MissingError` if the batch does not exist, and :class:`RejectedError` if the name is ambiguous, if
    the batch is withdrawn already, or if the reason is empty.
    """
    return _append_decision(store, name, "withdraw", by, reason)


def restore_batch(store: Store, name: str, *, by: str, reason: str) -> AcceptedBatch:
    """Lift a withdrawal: the batch is in the dataset again from the next run on. Raises like :func:`withdraw_batch`."""
    return _append_decision(store, name, "restore", by, reason)


def _append_decision(store: Store, name: str, action: Action, by: str, reason: str) -> AcceptedBatch:
    batches, faults = find_accepted(store)
    for fault in faults:  # a damaged document of one batch must not prevent the withdrawal of another
        log.error("%s", fault)
    batch = _find(batches, name)
    if not reason.strip():
        raise RejectedError(f"a reason is required to {action} a batch; it is stored with the batch")
    if (batch.withdrawal is None) == (action == "restore"):
        raise RejectedError(
            f"batch {batch.name} ({batch.sha256[:12]}) is {'not' if action == 'restore' else 'already'} withdrawn"
        )
    decision = BatchDecision(
        batch=batch.sha256,
        number=len(batch.decisions) + 1,
        action=action,
        by=make_printable(by),
        reason=make_printable(reason),
        time=read_clock(store).isoformat(),
        write_id=str(uuid4()),
    )
    document = decision.to_json()
    key = _make_decision_key(batch.sha256, decision.number)
    if not store.put_if_absent(key, seal(document)) and read_document(store, key) != document:
        raise ConflictError(
            f"somebody else withdrew or restored batch {batch.name} at the same time; check "
            f"{name_command(store.dataset, 'batches')}, then repeat the command if it is still needed"
        )
    return AcceptedBatch(batch.document, batch.accepted, [*batch.decisions, decision])


def _find(batches: list[AcceptedBatch], name: str) -> AcceptedBatch:
    """Return the only batch with that name, original or displayed, or with a SHA-256 that begins with it."""
    key = encode_name(name.encode(errors="surrogateescape"))
    is_digest = re.fullmatch(rf"[0-9a-f]{{{_MIN_DIGITS},64}}", name)
    matches = [
        batch for batch in batches if _list_names(batch) & {name, key} or (is_digest and batch.sha256.startswith(name))
    ]
    if not matches:
        raise MissingError(f"no batch has the name {name} or a SHA-256 that begins with it; see `fmnist batches`")
    if len(matches) > 1:
        digests = ", ".join(f"{batch.sha256[:12]} ({batch.name})" for batch in matches)
        raise RejectedError(f"{name} matches {len(matches)} batches: {digests}; use the SHA-256 of one of them")
    return matches[0]


def _list_names(batch: AcceptedBatch) -> set[str]:
    keys = batch.image_set.keys
    return {batch.name, *keys, *(key.removeprefix(PREFIX) for key in keys)}
