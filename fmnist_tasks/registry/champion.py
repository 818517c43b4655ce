"""The champion log: `champion/<sequence>.json`, one sealed entry a change, never rewritten; the highest is in force.

Appending is one conditional create of the next number, so that two writers cannot both win. Each entry carries the
writer's id: a writer that finds its own entry in that place knows that it has won, whatever became of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
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


def history(store: Store, after: int = 0) -> list[Entry]:
    """All entries after a number, oldest first; raises :class:`IntegrityError` for one that was changed or is lost."""
    entries: list[Entry] = []
    for expected, stat in enumerate(store.list("champion/", after=_key(after)), after + 1):
        entries.append(_read(store, stat.key))
        if entries[-1].sequence != expected:
            raise _gap(stat.key, expected)
    return entries


def champion(store: Store) -> Entry | None:
    """The entry in force, or None before the first promotion; raises :class:`IntegrityError` for a log with gaps.

    The highest number is found by doubling and halving, so that the time grows with the logarithm of the log's length.
    """

    def exists(number: int) -> bool:
        return store.stat(_key(number)) is not None

    last = _last(exists)
    while later := next(iter(store.list("champion/", after=_key(last))), None):
        if not exists(last + 1):
            raise _gap(later.key, last + 1)
        last = _last(exists, last + 1)  # the log has grown in the meantime
    return _read(store, _key(last)) if last else None


def champion_at(store: Store, moment: datetime) -> Entry | None:
    """The entry in force at that moment, or None if there was none yet. Times in the log never decrease."""
    current = champion(store)
    length = current.sequence if current else 0
    last = _last(lambda n: n <= length and datetime.fromisoformat(_read(store, _key(n)).time) <= moment)
    return _read(store, _key(last)) if last else None


def champion_before(store: Store, entry: Entry) -> str | None:
    """The release that was the champion before the one of this entry, or None if there was none."""
    for number in range(entry.sequence - 1, 0, -1):
        if (version := _read(store, _key(number)).version) != entry.version:
            return version
    return None


def append(
    store: Store, *, version: str, action: Literal["promote", "rollback"], reason: str, write_id: str, after: int
) -> Entry:
    """Make the release the champion, provided that entry number `after` (0: none) is still the one in force.

    Returns the entry; if this writer's entry is in that place already, that one, and nothing is written: its answer was
    lost, or the writer comes again. Raises :class:`ConflictError` if another writer's entry is there.
    """
    previous = _read(store, _key(after)) if after else None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = Entry(
        sequence=after + 1,
        version=version,
        action=action,
        reason=reason,
        write_id=write_id,
        time=max(now, previous.time) if previous else now,  # a clock that is behind does not turn the order round
    )
    if store.put_if_absent(_key(new.sequence), seal(new.as_json())):
        return new
    found = _read(store, _key(new.sequence))
    if (found.write_id, found.version) == (write_id, version):
        return found
    raise ConflictError(
        f"the champion is no longer {previous.version if previous else 'unset'}: entry {found.sequence} made it "
        f"{found.version} in the meantime; {version} is not promoted. Clear evaluate_tuned and what follows to judge "
        "it against the new champion"
    )


def _last(holds: Callable[[int], bool], low: int = 0) -> int:
    """The highest number from `low` on for which a condition holds that holds for all lower ones."""
    step = 1
    while holds(low + step):
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _gap(key: str, missing: int) -> IntegrityError:
    return IntegrityError(f"{key}: the champion log has no entry {missing} before it; restore what is missing")


def _key(sequence: int) -> str:
    return f"champion/{sequence:08d}.json"


def _read(store: Store, key: str) -> Entry:
    entry = Entry(**read_document(store, key))
    if _key(entry.sequence) != key:
        raise IntegrityError(f"{key}: holds entry {entry.sequence} of the champion log; it was copied or renamed")
    return entry
