"""What each step of a run produced and decided: `runs/<run_id>/<step>.json`."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.signing import is_envelope
from fmnist_tasks.registry.store import Store, side_by_side

_REFUSED = (
    "so nothing shows that a step of this project wrote it; clear the run from its first task, or start another run"
)


def run_key(run_id: str, name: str) -> str:
    """Key of a file of a run; raises :class:`SettingsError` for an id that is no single path part."""
    if not re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id) or run_id in {".", ".."}:
        raise SettingsError(f"run id {run_id!r}: use letters, digits and _.~:+- only")
    return f"runs/{run_id}/{name}"


def write_record(store: Store, run_id: str, step: str, record: dict[str, Any]) -> None:
    """Keep what a step did; a step that runs again replaces its record."""
    key = run_key(run_id, f"{step}.json")
    store.put(key, store.keys.encode(key, "run-record", {**record, "run_id": run_id, "step": step}))


def read_record(store: Store, run_id: str, step: str) -> dict[str, Any]:
    """The record of one step, to act on it; raises :class:`IntegrityError` like `read_at`, or if it is another run's.

    On a file system that takes `a` and `A` for the same, two runs may have one folder.
    """
    record = read_at(store, run_key(run_id, f"{step}.json"), to_act=True)
    if record["run_id"] != run_id:
        raise IntegrityError(
            f"{run_key(run_id, step)}.json is the record of run {record['run_id']}, whose folder is the same on this "
            "file system; name runs so that they differ in more than upper and lower case"
        )
    return record


def read_at(store: Store, key: str, *, to_act: bool = False) -> dict[str, Any]:
    """The record at a key; raises :class:`IntegrityError` if it was changed, or is unsigned but has to be signed.

    Only what is shown may be unsigned, such as the records of runs from before documents were signed, or signed by a
    key that is revoked.
    """
    data = store.get(key, MAX_BYTES)
    if to_act and store.keys.trusted and not is_envelope(data):  # before JSON of anybody is parsed
        raise IntegrityError(f"{key}: is unsigned, {_REFUSED}")
    document = store.keys.decode(key, "run-record", data)
    if to_act and store.keys.trusted and not store.keys.trusted.accepts(document.signed_by):
        raise IntegrityError(f"{key}: is signed by a revoked key, {_REFUSED}")
    if not all(isinstance(document.content.get(name), str) for name in ("run_id", "step", "started")):
        raise IntegrityError(f"{key}: is not the record of a step; it is not used")
    return document.content


def read_records(store: Store, run_id: str, *, to_act: bool = False) -> dict[str, dict[str, Any]]:
    """All records of a run by step name, in the order in which the steps began."""
    depth = run_key(run_id, "").count("/")
    found = (stat.key for stat in store.list(run_key(run_id, "")))
    keys = [key for key in found if key.endswith(".json") and key.count("/") == depth]
    records = side_by_side(partial(read_at, store, to_act=to_act), keys)
    return {record["step"]: record for record in sorted(records, key=lambda record: record["started"])}
