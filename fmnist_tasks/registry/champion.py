"""The champion log: `champion/<sequence>.json`, one sealed entry a change, never rewritten; the highest is in force.

Appending is one conditional create of the next sequence, so that two writers cannot both win. Each entry carries
the writer's id: a writer that finds its own entry knows that it has won before, whatever became of the answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fmnist_tasks.errors import ConflictError, IntegrityError
from fmnist_tasks.registry.documents import read_document, seal
from fmnist_tasks.registry.store import Store


@dataclass(frozen=True)
class Entry:
    """One change of the champion."""

    sequence: int  # 1, 2, 3, … without gaps
    version: str  # the release in service from here on
    action: Literal["promote", "rollback"]
    reason: str
    write_id: str  # who wrote it: the run id of a promotion, a random id of a rollback
    time: str  # UTC, ISO 8601

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return asdict(self)


def history(store: Store) -> list[Entry]:
    """All entries, oldest first; raises :class:`~fmnist_tasks.errors.IntegrityError` for one that was changed."""
    return [_read(store, stat.key) for stat in store.list("champion/")]


def champion(store: Store) -> Entry | None:
    """The entry in force, or None before the first promotion."""
    keys = [stat.key for stat in store.list("champion/")]
    return _read(store, keys[-1]) if keys else None


def append(
    store: Store,
    *,
    version: str,
    action: Literal["promote", "rollback"],
    reason: str,
    write_id: str,
    expected: str | None,
) -> Entry:
    """Make the release the champion, provided that the champion is still `expected` (None: there was none).

    Returns the entry; if this writer's entry is in the log already, that one, and nothing is written. Raises
    :class:`ConflictError` if the champion has changed since `expected` was read.
    """
    entries = history(store)
    for entry in entries:
        if entry.write_id == write_id and entry.version == version:
            return entry
    current = entries[-1] if entries else None
    new = Entry(
        sequence=current.sequence + 1 if current else 1,
        version=version,
        action=action,
        reason=reason,
        write_id=write_id,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    still_expected = (current.version if current else None) == expected
    if not still_expected or not store.put_if_absent(_key(new.sequence), seal(new.as_json())):
        raise ConflictError(
            f"the champion is no longer {expected or 'unset'}: another run or person changed it in the meantime; "
            f"{version} is not promoted. Clear promotion_gate and what follows to judge it against the new champion"
        )
    return new


def _key(sequence: int) -> str:
    return f"champion/{sequence:08d}.json"


def _read(store: Store, key: str) -> Entry:
    entry = Entry(**read_document(store, key))
    if _key(entry.sequence) != key:
        raise IntegrityError(f"{key}: holds entry {entry.sequence} of the champion log; it was copied or renamed")
    return entry
