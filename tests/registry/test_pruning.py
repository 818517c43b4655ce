"""Pruning deletes only objects that nothing needs any more."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fmnist_tasks import memory
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, StoreError
from fmnist_tasks.registry import champion, pruning, pruning_markers, releases
from fmnist_tasks.registry.blobs import compute_reference, put_blob
from fmnist_tasks.registry.documents import MAX_BYTES, seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Store, read_clock
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import BatchDocument, StoredReviewShard
from tests.support.documents import make_dataset, make_facts, save_record

MONTH = timedelta(days=30)


def publish(store: Store, version: str, *blobs: Reference) -> None:
    result = {"model": put_blob(store, f"model {version}".encode()).to_json()}
    for step in ("train", "promote"):
        save_record(store, f"run-of-{version}", step, result=result)
    facts = make_facts(version, dataset=make_dataset(*blobs))
    releases.publish_release(store, version, {"model.h5": version.encode(), "report.html": b"report"}, facts)


def promote(store: Store, *versions: str) -> None:
    for number, version in enumerate(versions):
        champion.append_entry(store, version=version, action="promote", reason="", write_id=str(number), after=number)


def make_plan(store: Store, keep: int, later: timedelta = 2 * MONTH) -> pruning.Plan:
    """Return the plan of a prune at a later time."""
    return pruning.plan_pruning(store, keep=keep, older_than=MONTH, now=read_clock(store) + later)


def prune_after(store: Store, keep: int, later: timedelta = 2 * MONTH) -> list[pruning.Group]:
    """Prune at a later time; return the deleted groups."""
    plan = make_plan(store, keep, later)
    before = {stat.key for stat in store.list("")}
    assert pruning.execute_plan(store, plan, lambda: None) == plan
    deleted = before - {stat.key for stat in store.list("")}
    assert deleted == {stat.key for group in plan.groups for stat in group.objects}
    return plan.groups


def make_old(store: FolderStore, prefix: str, days: int = 60) -> None:
    """Set the time of all objects below the prefix back."""
    moment = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for stat in store.list(prefix):
        os.utime(store.root / stat.key, (moment, moment))


def list_keys(store: Store, *prefixes: str) -> list[str]:
    return [stat.key for prefix in prefixes for stat in store.list(prefix)]


def test_champions_new_releases_and_referenced_objects_stay(store_of_each_kind: Store) -> None:
    data = [put_blob(store_of_each_kind, f"data {number}".encode()) for number in range(6)]
    for number in range(1, 6):
        publish(store_of_each_kind, f"v{number}", data[0], data[number])
    promote(store_of_each_kind, "v1", "v2", "v2", "v3", "v2")
    groups = prune_after(store_of_each_kind, keep=1)
    # v5 is the newest, v2 the champion, v3 the one before it
    assert releases.list_versions(store_of_each_kind) == ["v2", "v3", "v5"]
    assert [(group.kind, group.name) for group in groups if group.kind != "blob"] == [
        ("release", "v1"),
        ("release", "v4"),
        ("run", "run-of-v1"),
        ("run", "run-of-v4"),
    ]
    blobs = {stat.key for stat in store_of_each_kind.list("blobs/")}
    assert {data[number].uri in blobs for number in (0, 2, 3, 5)} == {True}
    assert {data[number].uri in blobs for number in (1, 4)} == {False}
    assert len(blobs) == 4 + 3  # and the models of the kept runs
    assert [entry.version for entry in champion.list_entries(store_of_each_kind)] == ["v1", "v2", "v2", "v3", "v2"]
    assert prune_after(store_of_each_kind, keep=1) == []


def accept_batch(store: Store, blob: Reference, *review: StoredReviewShard) -> None:
    (batch,) = make_dataset(blob).batches
    document = BatchDocument(image_set=batch, submitted=blob.sha256, review=list(review))
    store.put("batches/b.json", seal(document.to_json()))


def test_accepted_batches_and_their_blobs_stay(store_of_each_kind: Store) -> None:
    batch, images, arrays = (put_blob(store_of_each_kind, content) for content in (b"batch", b"images", b"arrays"))
    accept_batch(store_of_each_kind, batch, StoredReviewShard(images=images, arrays=arrays))
    store_of_each_kind.put("reviews/b/00000001.json", b"a decision")
    store_of_each_kind.put("incoming/new.npz", b"x")
    store_of_each_kind.put("quarantine/run/bad.npz", b"x")
    assert prune_after(store_of_each_kind, keep=1) == []


def test_recent_objects_stay(store: FolderStore) -> None:
    for version in ("v1", "v2", "v3"):
        publish(store, version, put_blob(store, version.encode()))
        if version == "v1":
            make_old(store, "")
    groups = prune_after(store, keep=1, later=timedelta(0))
    assert {group.name for group in groups if group.kind != "blob"} == {"v1", "run-of-v1"}
    assert len([group for group in groups if group.kind == "blob"]) == 2


def test_an_old_incomplete_publication_is_deleted(store_of_each_kind: Store) -> None:
    store_of_each_kind.put("releases/v0/model.h5", b"half a release")
    assert prune_after(store_of_each_kind, keep=1, later=timedelta(0)) == []
    (group,) = prune_after(store_of_each_kind, keep=1)
    assert (group.kind, group.name, group.bytes) == ("release", "v0", 14)


def test_old_checkpoints_are_deleted(store_of_each_kind: Store) -> None:
    store_of_each_kind.put("checkpoints/run-1/base-0/000002", b"state")
    assert prune_after(store_of_each_kind, keep=1, later=timedelta(0)) == []
    (group,) = prune_after(store_of_each_kind, keep=1)
    assert (group.kind, group.name) == ("checkpoints", "run-1")


def test_the_manifest_of_a_release_is_deleted_first(store: FolderStore) -> None:
    for version in ("v1", "v2"):
        publish(store, version)
    group = make_plan(store, keep=1).groups[0]
    assert group.objects[0].key == "releases/v1/manifest.json"


def test_nothing_is_pruned_while_a_run_is_in_progress(store: FolderStore) -> None:
    save_record(store, "run-9", "ingest")
    with pytest.raises(ConflictError, match="run run-9 may be in progress; prune when it has ended"):
        prune_after(store, keep=1, later=timedelta(hours=5))
    assert {group.name for group in prune_after(store, keep=1)} == {"run-9"}  # long after its last write


@pytest.mark.parametrize(
    "end",
    [
        ("promote", {"status": "done"}),
        ("train", {"status": "failed"}),
        ("accuracy_gate", {"status": "rejected"}),
        ("detect_change", {"status": "done", "result": {"changed": False}}),
    ],
)
def test_a_run_that_has_ended_does_not_block_a_prune(store: FolderStore, end: tuple[str, dict[str, Any]]) -> None:
    save_record(store, "run-9", "ingest")
    save_record(store, "run-9", end[0], **end[1])
    assert prune_after(store, keep=1, later=timedelta(0)) == []


def test_a_failed_run_with_a_running_step_has_not_ended(store: FolderStore) -> None:
    save_record(store, "run-9", "ingest")
    save_record(store, "run-9", "train-0", status="failed")
    save_record(store, "run-9", "train-1", status="running")
    with pytest.raises(ConflictError, match="run run-9 may be in progress; prune when it has ended, or after 20"):
        prune_after(store, keep=1, later=timedelta(0))


def test_the_newest_releases_are_those_that_were_published_last(store: FolderStore) -> None:
    for number, version in enumerate(("20261101T000000Z-a", "20261108T000000Z-b", "19700101T000000Z-c")):
        publish(store, version)
        make_old(store, f"releases/{version}/", days=60 - number)
    assert [group.name for group in prune_after(store, keep=2) if group.kind == "release"] == ["20261101T000000Z-a"]


def test_old_predictions_and_delivered_alerts_are_deleted(store_of_each_kind: Store) -> None:
    for key in ("predictions/run-1/shard-00000.csv", "predictions/run-1/summary.json", "alerts/delivered/mail/1.json"):
        store_of_each_kind.put(key, b"x")
    store_of_each_kind.put("alerts/mail/2.json", b"x")
    assert prune_after(store_of_each_kind, keep=1, later=timedelta(0)) == []
    groups = [(group.kind, group.name, len(group.objects)) for group in prune_after(store_of_each_kind, keep=1)]
    assert groups == [("predictions", "run-1", 2), ("alerts", "delivered", 1)]
    assert list_keys(store_of_each_kind, "alerts/") == ["alerts/mail/2.json"]


def test_damaged_and_foreign_objects_stay_and_are_reported(store_of_each_kind: Store) -> None:
    store = store_of_each_kind
    for version in ("v1", "v2", "v3", "v4"):
        publish(store, version, put_blob(store, f"data of {version}".encode()))
    promote(store, "v4")
    accept_batch(store, put_blob(store, b"batch"))
    damaged = ["batches/b.json", "releases/v2/manifest.json", "runs/run-of-v3/train.json"]
    for key in damaged:
        store.put(key, store.get(key).replace(b"2", b"3", 1) + b" ")
    foreign = [
        "blobs/notes.txt",
        "predictions/notes.txt",
        "releases/notes.txt",
        "releases/v1/notes.txt",
        "runs/notes.txt",
    ]
    for key in foreign:
        store.put(key, b"by hand")
    plan = make_plan(store, keep=1)
    assert sorted(plan.skipped) == sorted(damaged + foreign)
    pruning.execute_plan(store, plan, lambda: None)
    assert list_keys(store, "releases/v1/", "releases/v3/") == ["releases/v1/notes.txt"]
    assert releases.list_versions(store) == ["v2", "v4"]
    for version in ("v2", "v3", "v4"):  # with the blobs that they refer to
        assert store.stat(f"runs/run-of-{version}/train.json")
        assert store.stat(find_blob(f"model {version}".encode()))
    assert store.stat(find_blob(b"data of v2"))
    assert store.stat(find_blob(b"batch"))
    assert not store.stat(find_blob(b"data of v1"))
    assert make_plan(store, keep=1).groups == []


def find_blob(data: bytes) -> str:
    return f"blobs/sha256/{compute_reference('', data).sha256}"


def test_a_recent_run_with_a_damaged_record_blocks_a_prune(store: FolderStore) -> None:
    store.put("runs/run-9/ingest.json", b"{}")
    with pytest.raises(ConflictError, match="run run-9 may be in progress"):
        make_plan(store, keep=1, later=timedelta(0))
    assert make_plan(store, keep=1).skipped.keys() == {"runs/run-9/ingest.json"}


def test_an_object_that_was_written_after_the_plan_stays(store: FolderStore) -> None:
    blob, other = put_blob(store, b"used again"), put_blob(store, b"other")
    make_old(store, "")
    plan = pruning.plan_pruning(store, keep=1, older_than=MONTH, now=read_clock(store))
    store.put(blob.uri, b"used again")
    executed = pruning.execute_plan(store, plan, lambda: None)
    assert executed.skipped == {blob.uri: "was written again in the meantime"}
    assert store.stat(blob.uri)
    assert [group.name for group in executed.groups] == [other.uri]


@pytest.mark.exhaustive
def test_large_foreign_documents_do_not_fill_the_memory(store: FolderStore) -> None:
    """Parsed, each of these takes 90 MB of memory."""
    for number in range(12):
        empty = b'{\n  "lists": [%s],\n  "seal": ""\n}\n' % b",".join([b"[]"] * ((MAX_BYTES >> 2) - 40))
        sealed = empty.replace(b'""', b'"%s"' % hashlib.sha256(empty).hexdigest().encode())
        store.put(f"runs/run-{number}/train.json", sealed)
    memory.reset_peak_memory()
    before = memory.read_peak_memory()
    assert len(make_plan(store, keep=1).groups) == 12
    assert memory.read_peak_memory() - before < 400


def test_a_document_too_large_to_be_read_stops_a_prune(store: FolderStore) -> None:
    store.put("runs/run-1/train.json", seal({}) + b" " * MAX_BYTES)
    with pytest.raises(IntegrityError, match=r"^runs/run-1/train.json has 4,194,\d+ bytes, expected at most 4,194,304"):
        make_plan(store, keep=1)


def prune(store: Store) -> pruning.Plan:
    return pruning.prune(store, keep=1, older_than=MONTH)


def put_old_blob(store: FolderStore) -> str:
    key = put_blob(store, b"old").uri
    make_old(store, key)
    return key


def test_no_work_starts_during_a_prune(store_of_each_kind: Store) -> None:
    with pruning_markers.forbid_work(store_of_each_kind):
        with pytest.raises(StoreError, match="retry when it has ended, or in 60 minutes"):
            do_work(store_of_each_kind)
        with pytest.raises(ConflictError, match="another prune is in progress"):
            prune_something(store_of_each_kind)
    do_work(store_of_each_kind)
    assert list_keys(store_of_each_kind, "working/", pruning_markers.KEY) == []


def test_nothing_is_deleted_while_work_is_in_progress(store_of_each_kind: Store) -> None:
    with (
        pruning_markers.forbid_pruning(store_of_each_kind, "rollback to v1"),
        pytest.raises(
            ConflictError, match="rollback to v1 is in progress, so nothing is deleted; prune when it has ended"
        ),
    ):
        prune_something(store_of_each_kind)
    assert list_keys(store_of_each_kind, "working/", pruning_markers.KEY) == []
    prune_something(store_of_each_kind)


def do_work(store: Store) -> None:
    with pruning_markers.forbid_pruning(store, "step train of run run-1"):
        pass


@pytest.mark.parametrize("days", [1, -1])
def test_the_mark_of_killed_work_expires(store: FolderStore, days: int) -> None:
    """A marker from the future, which a wrong clock left, is ignored too."""
    store.put("working/killed.txt", b"step train of run run-1")
    with pytest.raises(ConflictError, match=r"step train of run run-1 is in progress.*or delete .*working/killed\.txt"):
        prune_something(store)
    make_old(store, "working/", days=days)
    prune_something(store)
    assert list_keys(store, "predictions/", "working/") == []


def prune_something(store: Store) -> None:
    store.put("predictions/run-1/summary.json", b"x")
    pruning.prune(store, keep=1, older_than=-MONTH)


@pytest.mark.parametrize("days", [1, -1])
def test_the_marker_of_a_killed_prune_expires(store: FolderStore, days: int) -> None:
    """A marker from the future, which a wrong clock left, is ignored too."""
    store.put(pruning_markers.KEY, b"left by a killed prune")
    with pytest.raises(
        ConflictError, match=r"another prune is in progress \(.*\); if it was killed, prune again in 60"
    ):
        prune_something(store)
    make_old(store, pruning_markers.KEY, days=days)
    do_work(store)
    prune_something(store)
    assert list_keys(store, "predictions/", pruning_markers.KEY) == []


def test_a_prune_stops_before_its_marker_expires(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put_old_blob(store)
    seconds = iter([0.0, pruning_markers.LIFETIME.total_seconds() - 600])
    monkeypatch.setattr(pruning_markers, "_read_seconds", lambda: next(seconds))
    with pytest.raises(ConflictError, match="the prune stops after its time limit of 45 minutes; prune again"):
        prune(store)
    assert store.stat(key)


def test_a_prune_stops_when_another_has_started(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put_old_blob(store)
    monkeypatch.setattr(
        pruning, "execute_plan", run_before(pruning.execute_plan, lambda: store.put(pruning_markers.KEY, b"other"))
    )
    with pytest.raises(ConflictError, match="another prune has started, so this one stops"):
        prune(store)
    assert store.stat(key)
    assert store.get(pruning_markers.KEY) == b"other"


def run_before(function: Callable[..., Any], event: Callable[[], object]) -> Callable[..., Any]:
    """Return the function with an event before each call."""

    def run_both(*args: Any, **kwargs: Any) -> Any:
        event()
        return function(*args, **kwargs)

    return run_both


class InterruptedStore(FolderStore):
    """Runs an event before one of its operations, counted from 1."""

    def __init__(self, root: Path, operation: int, event: Callable[[], object]) -> None:
        super().__init__(root)
        self.remaining, self.event = operation, event

    def _resolve_path(self, key: str) -> Path:
        self.remaining -= 1
        if self.remaining == 0:
            self.event()
        return super()._resolve_path(key)


def start_run(store: Store) -> str:
    """Use an old blob that nothing refers to, as `ingest` does."""
    try:
        with pruning_markers.forbid_pruning(store, "step ingest"):
            save_record(store, "run-9", "ingest", result={"blob": put_blob(store, b"old").to_json()})
    except StoreError:
        return "refused"
    return "started"


def roll_back(store: Store) -> str:
    """Make an old release the champion again, if it still exists."""
    current = champion.find_champion(store)
    try:
        with pruning_markers.forbid_pruning(store, "rollback"):
            releases.read_manifest(store, "v1")
            after = current.sequence if current else 0
            champion.append_entry(store, version="v1", action="rollback", reason="r", write_id="w", after=after)
    except (MissingError, StoreError) as error:
        return "missing" if isinstance(error, MissingError) else "refused"
    return "rolled back"


def try_to_prune(store: Store) -> str:
    try:
        return f"deleted {len(prune(store).groups)}"
    except ConflictError:
        return "refused"


@pytest.mark.parametrize("prune_starts_first", [True, False])
@pytest.mark.parametrize("work", [start_run, roll_back])
def test_a_prune_never_deletes_what_simultaneous_work_needs(
    tmp_path: Path, work: Callable[[Store], str], prune_starts_first: bool
) -> None:
    """The second starts before one of the first's operations on the store, for each of them in turn."""
    first, second = (try_to_prune, work) if prune_starts_first else (work, try_to_prune)
    outcomes = set()
    for operation in range(1, 200):
        plain, second_outcomes = FolderStore(tmp_path / str(operation)), list[str]()
        for version in ("v1", "v2", "v3"):
            publish(plain, version)
        promote(plain, "v1", "v2", "v3")
        make_old(plain, "releases/")
        key = put_old_blob(plain)
        start_second = partial(lambda store, results: results.append(second(store)), plain, second_outcomes)
        both = (first(InterruptedStore(plain.root, operation, start_second)), *second_outcomes)
        outcomes.add(both)
        assert "started" not in both or plain.stat(key), (operation, both)
        assert "rolled back" not in both or releases.read_manifest(plain, "v1"), (operation, both)
        if not second_outcomes:
            break
    assert 4 < operation < 199
    assert len(outcomes) > 2, outcomes
