"""Accepted batches: each a sealed document `batches/SHA256.json` that refers to its content, and decisions about it.

The same content counts once, whatever its name. A batch that turns out to be bad is withdrawn: it leaves the dataset
from the next run on, and the same content is not accepted again. Every decision is one sealed document
`batches/SHA256/NUMBER.json`, created once and never changed; the last one counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from fmnist_tasks.data.dataset import Part
from fmnist_tasks.data.incoming import PREFIX
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, RejectedError
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store, encode_name, read_clock, side_by_side
from fmnist_tasks.text import make_printable

Action = Literal["withdraw", "restore"]

_PREFIX = "batches/"
_KEY = re.compile(rf"{_PREFIX}[0-9a-f]{{64}}(/[0-9]{{8}})?\.json")
_SHORTEST = 6  # digits of a SHA-256 that name a batch


@dataclass(frozen=True)
class Decision:
    """That a batch was withdrawn or restored."""

    action: Action
    by: str
    reason: str
    time: str  # UTC, ISO 8601, by the store's clock
    write_id: str  # tells a writer whose answer was lost that the decision is its own


@dataclass(frozen=True)
class Accepted:
    """A batch that was accepted once."""

    part: Part
    accepted: datetime  # UTC, by the store's clock
    decisions: list[Decision] = field(default_factory=list)  # oldest first

    @property
    def sha256(self) -> str:
        """Digest of its content, which is its identity."""
        return str(self.part["blob"]["sha256"])

    @property
    def name(self) -> str:
        """The name under which it was accepted."""
        return str(self.part["source"]).removeprefix(PREFIX)

    @property
    def withdrawn(self) -> Decision | None:
        """The decision that keeps it out of the dataset, if there is one."""
        last = self.decisions[-1] if self.decisions else None
        return last if last and last.action == "withdraw" else None

    def as_json(self) -> dict[str, Any]:
        """One row for people and programs."""
        withdrawn = self.withdrawn
        why = f"{withdrawn.time[:16]} by {withdrawn.by}: {withdrawn.reason}" if withdrawn else ""
        return {
            "batch": self.name,
            "sha256": self.sha256,
            "images": self.part["images"],
            "accepted": self.accepted.isoformat(timespec="seconds"),
            "withdrawn": why,
        }


def list_accepted(store: Store) -> list[Accepted]:
    """All batches that were ever accepted, by digest, with the decisions about each."""
    stats = [stat for stat in store.list(_PREFIX) if _KEY.fullmatch(stat.key)]
    documents = side_by_side(partial(read_document, store), [stat.key for stat in stats])
    found: dict[str, Accepted] = {}
    for stat, document in zip(stats, documents, strict=True):
        digest = stat.key[len(_PREFIX) :][:64]
        if stat.key.endswith(f"{digest}.json"):
            found[digest] = Accepted(document, stat.modified)
        elif digest in found:
            try:
                found[digest].decisions.append(Decision(**document))
            except TypeError as error:
                told = f"{stat.key}: was written by a newer version of this project ({error}); install that"
                raise IntegrityError(told) from error
    return list(found.values())


def accept(store: Store, part: Part) -> Part:
    """Add a batch to the dataset for good; no error if it was added before."""
    store.put_if_absent(f"{_PREFIX}{part['blob']['sha256']}.json", seal(part))
    return part


def withdraw(store: Store, name: str, *, by: str, reason: str) -> Accepted:
    """Take a batch, named by its file or its SHA-256, out of the dataset from the next run on.

    Raises :class:`MissingError` if there is no such batch, and :class:`RejectedError` if the name means several, if it
    is withdrawn already, or if there is no reason.
    """
    return _decide(store, name, "withdraw", by, reason)


def restore(store: Store, name: str, *, by: str, reason: str) -> Accepted:
    """Lift a withdrawal: the batch is in the dataset again from the next run on. Raises like :func:`withdraw`."""
    return _decide(store, name, "restore", by, reason)


def _decide(store: Store, name: str, action: Action, by: str, reason: str) -> Accepted:
    batch = _find(list_accepted(store), name)
    if not reason.strip():
        raise RejectedError(f"to {action} a batch needs a reason; it is kept with the batch")
    if (batch.withdrawn is None) == (action == "restore"):
        raise RejectedError(
            f"batch {batch.name} ({batch.sha256[:12]}) is {'not' if action == 'restore' else 'already'} withdrawn"
        )
    decision = Decision(action, make_printable(by), make_printable(reason), read_clock(store).isoformat(), str(uuid4()))
    key = f"{_PREFIX}{batch.sha256}/{len(batch.decisions) + 1:08d}.json"
    if not store.put_if_absent(key, seal(vars(decision))) and read_document(store, key) != vars(decision):
        raise ConflictError(f"somebody else decided about batch {batch.name} at this moment; look at it, and try again")
    return Accepted(batch.part, batch.accepted, [*batch.decisions, decision])


def _find(batches: list[Accepted], name: str) -> Accepted:
    """The one batch with that name, original or displayed, or whose SHA-256 begins so."""
    key = encode_name(name.encode(errors="surrogateescape"))
    is_digest = re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},64}}", name)
    found = [batch for batch in batches if _names(batch) & {name, key} or (is_digest and batch.sha256.startswith(name))]
    if not found:
        raise MissingError(f"no batch is called {name}, nor does a SHA-256 begin so; `fmnist batches` lists them")
    if len(found) > 1:
        several = ", ".join(f"{batch.sha256[:12]} ({batch.name})" for batch in found)
        raise RejectedError(f"{name} means {len(found)} batches: {several}; name one by its SHA-256")
    return found[0]


def _names(batch: Accepted) -> set[str]:
    keys = batch.part.get("keys", [])
    return {batch.name, *keys, *(key.removeprefix(PREFIX) for key in keys)}
