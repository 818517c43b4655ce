"""Pruning: deletes old releases, runs without a release, checkpoints, predictions, delivered alerts and unused blobs.

The champion and the one before it, the newest releases, everything that a kept document refers to, and the champion log
stay. Accepted batches, incoming files and the quarantine are for users to delete. Objects that are damaged, or that
this project did not write, stay and are reported. Ages follow the store's clock.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import MAX_BYTES, unseal
from fmnist_tasks.registry.pruning_markers import forbid_work
from fmnist_tasks.registry.releases import make_file_key
from fmnist_tasks.registry.signing import Keys, Kind, extract_text
from fmnist_tasks.registry.store import DATASETS, Stat, Store, map_parallel, read_clock
from fmnist_tasks.settings import ALERT_LOOKBACK, RUN_LIMIT

_BLOB = re.compile(r'blobs/sha256/[^/"\\]+')
_RECORD = re.compile(r"runs/[^/]+/[^/]+\.json")
_OWN_KEYS = {  # by area: the keys that this project writes
    "runs": re.compile(r"runs/[^/]+/([^/]+\.json|report\.html|(data_docs|alerts)/.+)"),
    "releases": re.compile(r"releases/[^/]+/(manifest\.json|model\.h5|model_card\.md|report\.html|figures/.+)"),
    "checkpoints": re.compile(r"checkpoints/[^/]+/.+"),
    "predictions": re.compile(r"predictions/[^/]+/.+"),
}
_FOREIGN = "was not written by this project; delete it yourself if nobody needs it"
_DAMAGED = (
    "was changed after it was written, or is foreign; restore it, or delete it and the objects beside it yourself"
)
_SIGNED_KINDS: dict[str, Kind] = {"releases": "manifest", "runs": "run-record"}  # signed if there are keys
# Areas without documents that refer to blobs.
_AREAS_WITHOUT_REFERENCES = {
    "alerts",
    "blobs",
    "champion",
    "checkpoints",
    "incoming",
    "predictions",
    "quarantine",
    "reviews",
    "working",
}


@dataclass(frozen=True)
class Group:
    """Objects that are deleted together: a release, a run, its checkpoints or predictions, alerts, or a blob."""

    kind: str
    name: str
    objects: list[Stat]

    @property
    def bytes(self) -> int:
        """Size of all objects."""
        return sum(stat.bytes for stat in self.objects)


@dataclass(frozen=True)
class Plan:
    """The objects to delete, in this order, and those that stay although nothing refers to them."""

    groups: list[Group]
    skipped: dict[str, str]  # by key: why it stays
    cutoff: datetime  # only objects that were last written before this time are deleted


@dataclass(frozen=True)
class _Document:
    """The parts of a JSON document that pruning needs; whole documents could fill the memory."""

    is_intact: bool  # false: damaged or foreign
    blobs: set[str]  # keys of the stored blobs that it names
    runs: set[str]  # the run that it belongs to; of a damaged document, all runs that it names
    status: str | None = None  # of a step
    found_no_change: bool = False


def prune(store: Store, *, keep: int, older_than: timedelta) -> Plan:
    """Delete old objects that nothing protects; return the plan as it was carried out.

    Keeps the newest `keep` releases. Raises :class:`ConflictError` while a run, a rollback or another prune is in
    progress.
    """
    with forbid_work(store) as check:
        plan = plan_pruning(store, keep=keep, older_than=older_than, now=read_clock(store))
        return execute_plan(store, plan, check)


def plan_pruning(store: Store, *, keep: int, older_than: timedelta, now: datetime) -> Plan:
    """Return the objects to delete: those that are older than that and that nothing protects.

    Raises :class:`ConflictError` while a run is in progress, since it may use objects that nothing refers to yet.
    """
    stats = [stat for stat in store.list("") if not stat.key.startswith(DATASETS)]
    cutoff = now - older_than
    skipped: dict[str, str] = {}
    areas = {area: _group_by_name(stats, area, skipped) for area in _OWN_KEYS}
    runs, releases = areas["runs"], areas["releases"]
    blobs = {stat.key for stat in stats if _BLOB.fullmatch(stat.key)}
    documents = _read_documents(store, [stat.key for stat in stats if _is_document(stat.key)], blobs, set(runs))
    records = {key: document for key, document in documents.items() if _RECORD.fullmatch(key)}
    manifests = {
        name: documents[key] for name in releases if (key := make_file_key(name, "manifest.json")) in documents
    }
    damaged_runs = {_parse_name(key) for key, record in records.items() if not record.is_intact}
    for key, document in documents.items():
        if not document.is_intact and key.startswith(("batches/", "releases/", "runs/")):
            skipped[key] = _DAMAGED
    _refuse_runs_in_progress(runs, records, now)

    kept = _find_kept_releases(store, releases, manifests, keep)
    old_releases = [name for name in _list_older(releases, cutoff) if name not in kept]
    kept_runs = damaged_runs.union(*(manifest.runs for name, manifest in manifests.items() if name not in old_releases))
    old_runs = [name for name in _list_older(runs, cutoff) if name not in kept_runs]

    old_documents = {make_file_key(name, "manifest.json") for name in old_releases}
    old_documents |= {key for key in records if _parse_name(key) in old_runs}
    needed = {blob for key, document in documents.items() if key not in old_documents for blob in document.blobs}
    skipped |= {stat.key: _FOREIGN for stat in stats if stat.key.startswith("blobs/") and stat.key not in blobs}
    unneeded = blobs - needed
    unused = [stat for stat in stats if stat.key in unneeded and stat.modified < cutoff]
    # While a check can find the cause of an alert again, the alert must exist, or it would be sent twice.
    alert_cutoff = min(cutoff, now - 2 * ALERT_LOOKBACK)
    delivered = [stat for stat in stats if stat.key.startswith("alerts/delivered/") and stat.modified < alert_cutoff]
    groups = [
        *(Group("release", name, sorted(releases[name], key=_is_not_manifest)) for name in old_releases),
        *(Group("run", name, runs[name]) for name in old_runs),
        *(
            Group(area, name, areas[area][name])
            for area in ("checkpoints", "predictions")
            for name in _list_older(areas[area], cutoff)
        ),
        *([Group("alerts", "delivered", delivered)] if delivered else []),
        *(Group("blob", stat.key, [stat]) for stat in unused),
    ]
    return Plan(groups, skipped, cutoff)


def execute_plan(store: Store, plan: Plan, check: Callable[[], None]) -> Plan:
    """Delete the objects of a plan, except those that were written again since; return what was deleted, as a plan.

    `check` is called before each deletion and raises if pruning must stop. The next plan then contains the rest.
    """
    groups, skipped = [], dict(plan.skipped)
    for group in plan.groups:
        deleted = []
        for stat in group.objects:
            check()
            current = store.stat(stat.key)
            if current and current.modified >= plan.cutoff:
                skipped[stat.key] = "was written again in the meantime"
                break
            store.delete(stat.key)
            deleted.append(stat)
        if deleted:
            groups.append(replace(group, objects=deleted))
    return replace(plan, groups=groups, skipped=skipped)


def _group_by_name(stats: Iterable[Stat], area: str, skipped: dict[str, str]) -> dict[str, list[Stat]]:
    """Return the objects of an area by run or release; add foreign ones to `skipped`."""
    groups = defaultdict(list)
    for stat in stats:
        if stat.key.startswith(f"{area}/"):
            if _OWN_KEYS[area].fullmatch(stat.key):
                groups[_parse_name(stat.key)].append(stat)
            else:
                skipped[stat.key] = _FOREIGN
    return dict(groups)


def _parse_name(key: str) -> str:
    """Return the run or release that a key belongs to."""
    return key.split("/")[1]


def _is_document(key: str) -> bool:
    """Return whether a key is that of a document that can refer to blobs."""
    area = key.split("/")[0]
    if area in _OWN_KEYS:
        return _RECORD.fullmatch(key) is not None or (area == "releases" and key.endswith("/manifest.json"))
    return key.endswith(".json") and area not in _AREAS_WITHOUT_REFERENCES


def _read_documents(store: Store, keys: list[str], blobs: set[str], runs: set[str]) -> dict[str, _Document]:
    """Return the documents that still exist, damaged or not; `blobs` and `runs` are those of the store."""
    parsing = Lock()  # one at a time, since parsed JSON takes twenty times its size in memory

    def read(key: str) -> _Document | None:
        try:
            data = store.get(key, MAX_BYTES)
        except MissingError:
            return None
        with parsing:
            return _condense(store.keys, key, data, blobs, runs)

    return {key: document for key, document in zip(keys, map_parallel(read, keys), strict=True) if document}


def _condense(keys: Keys, key: str, data: bytes, blobs: set[str], runs: set[str]) -> _Document:
    text = extract_text(data)
    named_blobs = {match[0] for match in _BLOB.finditer(text.decode(errors="replace")) if match[0] in blobs}
    try:
        kind = _SIGNED_KINDS.get(key.split("/")[0])
        content = keys.decode(key, kind, data).content if kind else unseal(data, key)
    except IntegrityError:
        return _Document(False, named_blobs, {run_id for run_id in runs if f'"{run_id}"'.encode() in text})
    return _Document(
        True, named_blobs, {str(content.get("run_id"))}, str(content.get("status")), _found_no_change(content)
    )


def _found_no_change(content: dict[str, Any]) -> bool:
    """Return whether this is the record of a `detect_change` that found no change."""
    result = content.get("result")
    return content.get("step") == "detect_change" and isinstance(result, dict) and result.get("changed") is False


def _refuse_runs_in_progress(runs: dict[str, list[Stat]], records: dict[str, _Document], now: datetime) -> None:
    steps: dict[str, dict[str, _Document]] = defaultdict(dict)
    for key, record in records.items():
        steps[_parse_name(key)][key.rpartition("/")[2].removesuffix(".json")] = record
    for run_id, objects in runs.items():
        deadline = _find_last_write(objects) + RUN_LIMIT
        if now < deadline and run_id in steps and not _has_ended(steps[run_id]):
            raise ConflictError(
                f"run {run_id} may be in progress; prune when it has ended, or after {deadline:%Y-%m-%d %H:%M} UTC"
            )


def _has_ended(records: dict[str, _Document]) -> bool:
    """Return whether a run has promoted, failed, found no change or was rejected, and none of its steps is running."""
    statuses = {record.status if record.is_intact else "done" for record in records.values()}
    unchanged = any(record.found_no_change for record in records.values())
    return "running" not in statuses and (unchanged or statuses != {"done"} or "promote" in records)


def _find_kept_releases(
    store: Store, releases: dict[str, list[Stat]], manifests: dict[str, _Document], keep: int
) -> set[str]:
    """Return the champion, the one before it, the newest `keep` releases, and those whose manifest is damaged."""

    def get_publication_time(name: str) -> tuple[datetime, str]:
        manifest = next(stat for stat in releases[name] if not _is_not_manifest(stat))
        return manifest.modified, name

    damaged = {name for name, manifest in manifests.items() if not manifest.is_intact}
    newest = sorted(manifests.keys() - damaged, key=get_publication_time)
    return _list_champions(store) | damaged | set(newest[max(0, len(newest) - keep) :])


def _list_champions(store: Store) -> set[str]:
    """Return the champion and the one before it."""
    champion_log = champion.read_log(store)
    current = champion_log.champion.version if champion_log.champion else None
    return {version for version in (current, champion_log.previous_champion) if version}


def _list_older(groups: dict[str, list[Stat]], cutoff: datetime) -> list[str]:
    return [name for name, objects in groups.items() if _find_last_write(objects) < cutoff]


def _find_last_write(objects: list[Stat]) -> datetime:
    return max(stat.modified for stat in objects)


def _is_not_manifest(stat: Stat) -> bool:
    """Sort the manifest first: a release without one no longer exists, so no reader finds an incomplete release."""
    return not stat.key.endswith("/manifest.json")
