"""What the store no longer needs: old releases, runs without a release, what runs left, and unused content.

Never touched are the champion, the champion before it, the newest releases, whatever a kept document refers to, and the
champion log itself. Accepted batches, incoming files and the quarantine are a person's to delete.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.blobs import references
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.releases import file_key, read_manifest
from fmnist_tasks.registry.store import Stat, Store
from fmnist_tasks.settings import RUN_LIMIT


@dataclass(frozen=True)
class Group:
    """Objects that go together: a release, a run, the checkpoints of a run that did not end, or a blob."""

    kind: str
    name: str
    objects: list[Stat]

    @property
    def bytes(self) -> int:
        """Size of all objects."""
        return sum(stat.bytes for stat in self.objects)


def plan(store: Store, *, keep: int, older_than: timedelta, now: datetime) -> list[Group]:
    """What is older than that and not protected, in the order in which it is to go; nothing is deleted.

    Raises :class:`ConflictError` while a run is under way, since it may rely on what nothing refers to yet.
    """
    releases, runs = _by_name(store.list("releases/")), _by_name(store.list("runs/"))
    blobs = list(store.list("blobs/"))
    before = now - older_than
    for run_id, objects in runs.items():
        if now - _last_written(objects) < RUN_LIMIT and not _ended(store, run_id, objects):
            raise ConflictError(f"run {run_id} may be under way; prune when it has ended")

    published = [
        version for version, objects in releases.items() if file_key(version, "manifest.json") in _keys(objects)
    ]
    kept = _in_service(store) | set(published[max(0, len(published) - keep) :])
    old_releases = [name for name, objects in releases.items() if name not in kept and _last_written(objects) < before]
    manifests = [read_manifest(store, version) for version in published if version not in old_releases]
    kept_runs = {manifest["run_id"] for manifest in manifests}
    old_runs = [name for name, objects in runs.items() if name not in kept_runs and _last_written(objects) < before]

    checkpoints = _by_name(store.list("checkpoints/"))
    old_trainings = [name for name, objects in checkpoints.items() if _last_written(objects) < before]

    documents: list[Any] = [*manifests, *(read_document(store, stat.key) for stat in store.list("batches/"))]
    for name in runs.keys() - set(old_runs):
        documents += [read_document(store, stat.key) for stat in runs[name] if _is_record(stat.key)]
    needed = {reference["uri"] for reference in references(documents)}

    return [
        *(Group("release", name, sorted(releases[name], key=_after_manifest)) for name in old_releases),
        *(Group("run", name, runs[name]) for name in old_runs),
        *(Group("checkpoints", name, checkpoints[name]) for name in old_trainings),
        *(Group("blob", stat.key, [stat]) for stat in blobs if stat.key not in needed and stat.modified < before),
    ]


def carry_out(store: Store, groups: list[Group]) -> None:
    """Delete what is planned; if cut short, the next plan finds the rest."""
    for group in groups:
        for stat in group.objects:
            store.delete(stat.key)


def _in_service(store: Store) -> set[str]:
    """The champion and the one before it."""
    entry = champion.champion(store)
    return {entry.version, champion.champion_before(store, entry) or entry.version} if entry else set()


def _by_name(stats: Iterable[Stat]) -> dict[str, list[Stat]]:
    """Objects by the second part of their keys, in its order."""
    named = defaultdict(list)
    for stat in stats:
        named[stat.key.split("/")[1]].append(stat)
    return dict(named)


def _keys(objects: list[Stat]) -> set[str]:
    return {stat.key for stat in objects}


def _last_written(objects: list[Stat]) -> datetime:
    return max(stat.modified for stat in objects)


def _after_manifest(stat: Stat) -> bool:
    """Sorts the manifest first, so that a release ceases to exist before it is incomplete."""
    return not stat.key.endswith("/manifest.json")


def _is_record(key: str) -> bool:
    return re.fullmatch(r"runs/[^/]+/[^/]+\.json", key) is not None


def _ended(store: Store, run_id: str, objects: list[Stat]) -> bool:
    """Whether a run came to its end: it promoted, was turned down, failed, or found nothing new."""
    records = {stat.key: read_document(store, stat.key) for stat in objects if _is_record(stat.key)}
    unchanged = records.get(f"runs/{run_id}/detect_change.json", {}).get("result", {}).get("changed") is False
    stopped = any(record["status"] != "done" for record in records.values())
    return unchanged or stopped or f"runs/{run_id}/promote.json" in records
