"""Records: what each step of a run produced and decided, `runs/<run_id>/<step>.json`."""

from __future__ import annotations

import re
from functools import partial

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.signing import is_envelope
from fmnist_tasks.registry.store import Store, map_readable, require_max_size
from fmnist_tasks.schemas.runs import StepRecord

_MAX_RUN_BYTES = 16 << 20  # of all records of a run
_MAX_ID_LENGTH = 250  # as in Airflow; file systems allow 255 bytes
_CONSEQUENCE = (
    "so nothing shows that a step of this project wrote it; clear the run from its first task, or start a new run"
)


def make_run_key(run_id: str, name: str) -> str:
    """Return the key of a file of a run; raises :class:`SettingsError` for an ID that cannot be a folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id) or run_id in {".", ".."}:
        raise SettingsError(f"run ID {run_id!r}: use letters, digits and _.~:+- only")
    if len(run_id) > _MAX_ID_LENGTH:
        raise SettingsError(f"run ID {run_id[:20]}…: has {len(run_id):,} characters; the limit is {_MAX_ID_LENGTH}")
    return f"runs/{run_id}/{name}"


def write_record(store: Store, record: StepRecord) -> None:
    """Write the record of a step; a step that runs again replaces its record."""
    key = make_run_key(record.run_id, f"{record.step}.json")
    store.put(key, store.keys.encode(key, "run-record", record.to_json()))


def read_record(store: Store, run_id: str, step: str) -> StepRecord:
    """Return the record of one step, for another step to use.

    Raises :class:`IntegrityError` like :func:`read_record_at`.
    """
    return read_record_at(store, make_run_key(run_id, f"{step}.json"), require_signature=True)


def read_record_at(store: Store, key: str, *, require_signature: bool = False) -> StepRecord:
    """Return the record at a key; raises :class:`IntegrityError` if it was changed, or is the record of another key.

    With `require_signature`, and if there are trusted keys, the record must be signed by a key that is not revoked.
    Records that are only shown may be unsigned, as those from before signing began are.
    """
    data = store.get(key, MAX_BYTES)
    if require_signature and store.keys.trusted and not is_envelope(data):  # before untrusted JSON is parsed
        raise IntegrityError(f"{key} is unsigned, {_CONSEQUENCE}")
    document = store.keys.decode(key, "run-record", data)
    if require_signature and store.keys.trusted and not store.keys.trusted.is_active_key(document.signed_by):
        raise IntegrityError(f"{key} is signed by a revoked key, {_CONSEQUENCE}")
    record = StepRecord.parse(document.content, key)
    actual = make_run_key(record.run_id, f"{record.step}.json")
    if actual != key:
        if actual.casefold() == key.casefold():
            remedy = "the two share a folder on this file system; choose run IDs that differ in more than case"
        else:
            remedy = "so it was copied or renamed; delete it"
        raise IntegrityError(f"{key} is the record of step {record.step} of run {record.run_id}, {remedy}")
    return record


def read_records(store: Store, run_id: str, *, require_signature: bool = False) -> dict[str, StepRecord]:
    """Return all records of a run by step name, in the order of their starts; raises like :func:`read_record_at`."""
    records, faults = find_records(store, run_id, require_signature=require_signature)
    if faults:
        raise faults[0]
    return records


def find_records(
    store: Store, run_id: str, *, require_signature: bool = False
) -> tuple[dict[str, StepRecord], list[Exception]]:
    """Return the records of :func:`read_records` that can be read, and the faults of the others."""
    prefix = make_run_key(run_id, "")
    stats = [stat for stat in store.list(prefix) if re.fullmatch(r"[^/]+\.json", stat.key.removeprefix(prefix))]
    require_max_size(f"{prefix}*.json", sum(stat.bytes for stat in stats), _MAX_RUN_BYTES)
    read = partial(read_record_at, store, require_signature=require_signature)
    records, faults = map_readable(read, [stat.key for stat in stats])
    return {record.step: record for record in sorted(records, key=lambda record: record.started)}, faults
