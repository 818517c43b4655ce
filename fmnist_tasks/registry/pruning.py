"""What the store no longer needs: old releases, runs without a release, predictions, and unused content.

Never touched are the champion, the champion before it, the newest releases, whatever a kept document refers to, and the
champion log itself. Accepted batches, incoming files and the quarantine are for a user to delete. What is damaged, or
was not written by this project, stays and is named. Ages are by the store's clock.
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
from fmnist_tasks.registry.pruning_flag import forbid_work
from fmnist_tasks.registry.releases import file_key
from fmnist_tasks.registry.signing import Keys, Kind, extract_text
from fmnist_tasks.registry.store import Stat, Store, read_clock, side_by_side
from fmnist_tasks.settings import RECENT, RUN_LIMIT

_BLOB = re.compile(r'blobs/sha256/[^/"\\]+')
_RECORD = re.compile(r"runs/[^/]+/[^/]+\.json")
_OWN = {  # what this project writes below a run or a release
    "runs": re.compile(r"runs/[^/]+/([^/]+\.json|report\.html|(data_docs|alerts)/.+)"),
    "releases": re.compile(r"releases/[^/]+/(manifest\.json|model\.h5|model_card\.md|report\.html|figures/.+)"),
    "checkpoints": re.compile(r"checkpoints/[^/]+/.+"),
    "predictions": re.compile(r"predictions/[^/]+/.+"),
}
_FOREIGN = "was not written by this project; delete it yourself if nobody needs it"
_DAMAGED = "was changed after it was written, or is foreign; restore it, or delete it yourself with what is beside it"
_SIGNED: dict[str, Kind] = {"releases": "manifest", "runs": "run-record"}  # what is signed, if there are keys
# Below these are no documents that refer to blobs.
_WITHOUT_REFERENCES = {"alerts", "blobs", "champion", "checkpoints", "incoming", "predictions", "quarantine", "working"}


@dataclass(frozen=True)
class Group:
    """Objects that go together: a release, a run, its checkpoints or predictions, delivered alerts, or a blob."""

    kind: str
    name: str
    objects: list[Stat]

    @property
    def bytes(self) -> int:
        """Size of all objects."""
        return sum(stat.bytes for stat in self.objects)


@dataclass(frozen=True)
class Plan:
    """What is to go, in this order, and what stays although nothing protects it."""

    groups: list[Group]
    left_alone: dict[str, str]  # by key: why it stays
    before: datetime  # only what was last written before goes


@dataclass(frozen=True)
class _Document:
    """What pruning needs of a JSON document; the whole would fill the memory, since there may be many."""

    is_intact: bool  # otherwise damaged or foreign
    blobs: set[str]  # of those in the store, the keys that it names
    runs: set[str]  # the run whose result it is; of a damaged one, all runs that it names
    status: str | None = None  # of a step
    found_no_change: bool = False


def prune(store: Store, *, keep: int, older_than: timedelta) -> Plan:
    """Delete what is older than that and not protected; what was deleted, and what was left alone.

    Raises :class:`ConflictError` while a run, a rollback or another prune is under way.
    """
    with forbid_work(store) as check:
        return carry_out(store, plan(store, keep=keep, older_than=older_than, now=read_clock(store)), check)


def plan(store: Store, *, keep: int, older_than: timedelta, now: datetime) -> Plan:
    """What is older than that and not protected, in the order in which it is to go; nothing is deleted.

    Raises :class:`ConflictError` while a run is under way, since it may rely on what nothing refers to yet.
    """
    stats = list(store.list(""))
    before = now - older_than
    left_alone: dict[str, str] = {}
    found = {area: _by_name(stats, area, left_alone) for area in _OWN}
    runs, releases = found["runs"], found["releases"]
    blobs = {stat.key for stat in stats if _BLOB.fullmatch(stat.key)}
    documents = _read_documents(store, [stat.key for stat in stats if _may_refer(stat.key)], blobs, set(runs))
    records = {key: document for key, document in documents.items() if _RECORD.fullmatch(key)}
    manifests = {name: documents[key] for name in releases if (key := file_key(name, "manifest.json")) in documents}
    damaged_runs = {_name(key) for key, record in records.items() if not record.is_intact}
    for key, document in documents.items():
        if not document.is_intact and key.startswith(("batches/", "releases/", "runs/")):
            left_alone[key] = _DAMAGED
    _refuse_runs_under_way(runs, records, now)

    kept = _find_kept_releases(store, releases, manifests, keep)
    old_releases = [name for name in _older(releases, before) if name not in kept]
    kept_runs = damaged_runs.union(*(manifest.runs for name, manifest in manifests.items() if name not in old_releases))
    old_runs = [name for name in _older(runs, before) if name not in kept_runs]

    going = {file_key(name, "manifest.json") for name in old_releases}
    going |= {key for key in records if _name(key) in old_runs}
    needed = {blob for key, document in documents.items() if key not in going for blob in document.blobs}
    left_alone |= {stat.key: _FOREIGN for stat in stats if stat.key.startswith("blobs/") and stat.key not in blobs}
    unneeded = blobs - needed
    unused = [stat for stat in stats if stat.key in unneeded and stat.modified < before]
    # As long as what an alert is about may be found again, the alert must be known.
    known_until = min(before, now - 2 * RECENT)
    delivered = [stat for stat in stats if stat.key.startswith("alerts/delivered/") and stat.modified < known_until]
    groups = [
        *(Group("release", name, sorted(releases[name], key=_after_manifest)) for name in old_releases),
        *(Group("run", name, runs[name]) for name in old_runs),
        *(
            Group(area, name, found[area][name])
            for area in ("checkpoints", "predictions")
            for name in _older(found[area], before)
        ),
        *([Group("alerts", "delivered", delivered)] if delivered else []),
        *(Group("blob", stat.key, [stat]) for stat in unused),
    ]
    return Plan(groups, left_alone, before)


def carry_out(store: Store, planned: Plan, check: Callable[[], None]) -> Plan:
    """Delete what is planned, unless it was written again since; what really went.

    `check` is called before each deletion and raises if pruning must stop. If cut short, the next plan finds the rest.
    """
    groups, left_alone = [], dict(planned.left_alone)
    for group in planned.groups:
        gone = []
        for stat in group.objects:
            check()
            current = store.stat(stat.key)
            if current and current.modified >= planned.before:
                left_alone[stat.key] = "was written again meanwhile"
                break
            store.delete(stat.key)
            gone.append(stat)
        if gone:
            groups.append(replace(group, objects=gone))
    return replace(planned, groups=groups, left_alone=left_alone)


def _by_name(stats: Iterable[Stat], area: str, left_alone: dict[str, str]) -> dict[str, list[Stat]]:
    """Objects of an area by run or release, in the order of their names; foreign ones are left alone."""
    named = defaultdict(list)
    for stat in stats:
        if stat.key.startswith(f"{area}/"):
            if _OWN[area].fullmatch(stat.key):
                named[_name(stat.key)].append(stat)
            else:
                left_alone[stat.key] = _FOREIGN
    return dict(named)


def _name(key: str) -> str:
    """The run or release that a key belongs to."""
    return key.split("/")[1]


def _may_refer(key: str) -> bool:
    area = key.split("/")[0]
    if area in _OWN:
        return _RECORD.fullmatch(key) is not None or (area == "releases" and key.endswith("/manifest.json"))
    return key.endswith(".json") and area not in _WITHOUT_REFERENCES


def _read_documents(store: Store, keys: list[str], blobs: set[str], runs: set[str]) -> dict[str, _Document]:
    """The documents that are still there, damaged or not, of a store that has these blobs and runs."""
    one_at_a_time = Lock()  # takes twenty times its size in memory

    def read(key: str) -> _Document | None:
        try:
            data = store.get(key, MAX_BYTES)
        except MissingError:
            return None
        with one_at_a_time:
            return _condense(store.keys, key, data, blobs, runs)

    return {key: document for key, document in zip(keys, side_by_side(read, keys), strict=True) if document}


def _condense(keys: Keys, key: str, data: bytes, blobs: set[str], runs: set[str]) -> _Document:
    text = extract_text(data)
    named = {found[0] for found in _BLOB.finditer(text.decode(errors="replace")) if found[0] in blobs}
    try:
        kind = _SIGNED.get(key.split("/")[0])
        content = keys.decode(key, kind, data).content if kind else unseal(data, key)
    except IntegrityError:
        return _Document(False, named, {run_id for run_id in runs if f'"{run_id}"'.encode() in text})
    return _Document(True, named, {str(content.get("run_id"))}, str(content.get("status")), _found_no_change(content))


def _found_no_change(content: dict[str, Any]) -> bool:
    """Whether this is the record of `detect_change` and says that the run has nothing to do."""
    result = content.get("result")
    return content.get("step") == "detect_change" and isinstance(result, dict) and result.get("changed") is False


def _refuse_runs_under_way(runs: dict[str, list[Stat]], records: dict[str, _Document], now: datetime) -> None:
    steps: dict[str, dict[str, _Document]] = defaultdict(dict)
    for key, record in records.items():
        steps[_name(key)][key.rpartition("/")[2].removesuffix(".json")] = record
    for run_id, objects in runs.items():
        until = _last_written(objects) + RUN_LIMIT
        if now < until and run_id in steps and not _ended(steps[run_id]):
            raise ConflictError(
                f"run {run_id} may be under way; prune when it has ended, or after {until:%Y-%m-%d %H:%M} UTC"
            )


def _ended(records: dict[str, _Document]) -> bool:
    """Whether a run came to its end: it promoted, was rejected, failed, or found nothing new, and no step goes on."""
    statuses = {record.status if record.is_intact else "done" for record in records.values()}
    unchanged = any(record.found_no_change for record in records.values())
    return "running" not in statuses and (unchanged or statuses != {"done"} or "promote" in records)


def _find_kept_releases(
    store: Store, releases: dict[str, list[Stat]], manifests: dict[str, _Document], keep: int
) -> set[str]:
    """The releases in service, those that were published last, and those whose manifest is damaged."""

    def find_publication(name: str) -> tuple[datetime, str]:
        manifest = next(stat for stat in releases[name] if not _after_manifest(stat))
        return manifest.modified, name

    damaged = {name for name, manifest in manifests.items() if not manifest.is_intact}
    newest = sorted(manifests.keys() - damaged, key=find_publication)
    return _in_service(store) | damaged | set(newest[max(0, len(newest) - keep) :])


def _in_service(store: Store) -> set[str]:
    """The champion and the one before it."""
    log = champion.read_log(store)
    current = log.champion.version if log.champion else None
    return {version for version in (current, log.champion_before) if version}


def _older(named: dict[str, list[Stat]], before: datetime) -> list[str]:
    return [name for name, objects in named.items() if _last_written(objects) < before]


def _last_written(objects: list[Stat]) -> datetime:
    return max(stat.modified for stat in objects)


def _after_manifest(stat: Stat) -> bool:
    """Sorts the manifest first, so that a release ceases to exist before it is incomplete."""
    return not stat.key.endswith("/manifest.json")
