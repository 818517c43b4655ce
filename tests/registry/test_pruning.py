"""Pruning deletes what nothing needs any more, and nothing else."""

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
from fmnist_tasks.registry import champion, pruning, pruning_flag, releases
from fmnist_tasks.registry.blobs import describe, put_blob
from fmnist_tasks.registry.documents import MAX_BYTES, seal
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.registry.store import Store, read_clock

MONTH = timedelta(days=30)


def release(store: Store, version: str, *blobs: dict[str, Any]) -> None:
    run_id = f"run-of-{version}"
    record = {
        "status": "done",
        "started": "2026-01-01",
        "result": {"model": put_blob(store, f"model {version}".encode())},
    }
    for step in ("train", "promote"):
        write_record(store, run_id, step, record)
    facts = {"model_sha256": version, "run_id": run_id, "data": {"parts": [{"blob": blob} for blob in blobs]}}
    releases.publish(store, version, {"model.h5": version.encode(), "report.html": b"report"}, facts)


def promote(store: Store, *versions: str) -> None:
    for number, version in enumerate(versions):
        champion.append(store, version=version, action="promote", reason="", write_id=str(number), after=number)


def planned(store: Store, keep: int, later: timedelta = 2 * MONTH) -> pruning.Plan:
    """The plan as it will be after that time."""
    return pruning.plan(store, keep=keep, older_than=MONTH, now=read_clock(store) + later)


def pruned(store: Store, keep: int, later: timedelta = 2 * MONTH) -> list[pruning.Group]:
    plan = planned(store, keep, later)
    before = {stat.key for stat in store.list("")}
    assert pruning.carry_out(store, plan, lambda: None) == plan
    gone = before - {stat.key for stat in store.list("")}
    assert gone == {stat.key for group in plan.groups for stat in group.objects}
    return plan.groups


def make_old(store: FolderStore, prefix: str, days: int = 60) -> None:
    """Let everything below the prefix have been written long ago."""
    moment = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for stat in store.list(prefix):
        os.utime(store.root / stat.key, (moment, moment))


def list_keys(store: Store, *prefixes: str) -> list[str]:
    return [stat.key for prefix in prefixes for stat in store.list(prefix)]


def test_what_is_in_service_new_or_referred_to_stays(store_of_each_kind: Store) -> None:
    data = [put_blob(store_of_each_kind, f"data {number}".encode()) for number in range(6)]
    for number in range(1, 6):
        release(store_of_each_kind, f"v{number}", data[0], data[number])
    promote(store_of_each_kind, "v1", "v2", "v2", "v3", "v2")
    groups = pruned(store_of_each_kind, keep=1)
    # v5 is the newest, v2 the champion, v3 the one before it
    assert releases.versions(store_of_each_kind) == ["v2", "v3", "v5"]
    assert [(group.kind, group.name) for group in groups if group.kind != "blob"] == [
        ("release", "v1"),
        ("release", "v4"),
        ("run", "run-of-v1"),
        ("run", "run-of-v4"),
    ]
    left = {stat.key for stat in store_of_each_kind.list("blobs/")}
    assert {data[number]["uri"] in left for number in (0, 2, 3, 5)} == {True}
    assert {data[number]["uri"] in left for number in (1, 4)} == {False}
    assert len(left) == 4 + 3  # and the models that the kept runs trained
    assert [entry.version for entry in champion.history(store_of_each_kind)] == ["v1", "v2", "v2", "v3", "v2"]
    assert pruned(store_of_each_kind, keep=1) == []


def test_accepted_batches_and_what_they_refer_to_stay(store_of_each_kind: Store) -> None:
    blob = put_blob(store_of_each_kind, b"batch")
    store_of_each_kind.put("batches/b.json", seal({"blob": blob}))
    store_of_each_kind.put("incoming/new.npz", b"x")
    store_of_each_kind.put("quarantine/run/bad.npz", b"x")
    assert pruned(store_of_each_kind, keep=1) == []


def test_what_is_young_stays(store: FolderStore) -> None:
    for version in ("v1", "v2", "v3"):
        release(store, version, put_blob(store, version.encode()))
        if version == "v1":
            make_old(store, "")
    groups = pruned(store, keep=1, later=timedelta(0))
    assert {group.name for group in groups if group.kind != "blob"} == {"v1", "run-of-v1"}
    assert len([group for group in groups if group.kind == "blob"]) == 2


def test_a_publication_that_was_cut_short_goes_once_it_is_old(store_of_each_kind: Store) -> None:
    store_of_each_kind.put("releases/v0/model.h5", b"half a release")
    assert pruned(store_of_each_kind, keep=1, later=timedelta(0)) == []
    (group,) = pruned(store_of_each_kind, keep=1)
    assert (group.kind, group.name, group.bytes) == ("release", "v0", 14)


def test_checkpoints_of_a_run_that_did_not_end_go_once_they_are_old(store_of_each_kind: Store) -> None:
    store_of_each_kind.put("checkpoints/run-1/base-0/000002", b"state")
    assert pruned(store_of_each_kind, keep=1, later=timedelta(0)) == []
    (group,) = pruned(store_of_each_kind, keep=1)
    assert (group.kind, group.name) == ("checkpoints", "run-1")


def test_a_release_ceases_to_exist_before_it_is_incomplete(store: FolderStore) -> None:
    for version in ("v1", "v2"):
        release(store, version)
    first = planned(store, keep=1).groups[0]
    assert first.objects[0].key == "releases/v1/manifest.json"


def test_nothing_is_pruned_while_a_run_is_under_way(store: FolderStore) -> None:
    write_record(store, "run-9", "ingest", {"status": "done", "started": "now"})
    with pytest.raises(ConflictError, match="run run-9 may be under way; prune when it has ended"):
        pruned(store, keep=1, later=timedelta(hours=5))
    assert {group.name for group in pruned(store, keep=1)} == {"run-9"}  # given up long ago


@pytest.mark.parametrize(
    "end",
    [
        ("promote", {"status": "done"}),
        ("train", {"status": "failed"}),
        ("accuracy_gate", {"status": "rejected"}),
        ("detect_change", {"status": "done", "result": {"changed": False}}),
    ],
)
def test_a_run_that_has_ended_is_not_under_way(store: FolderStore, end: tuple[str, dict[str, Any]]) -> None:
    write_record(store, "run-9", "ingest", {"status": "done", "started": "now"})
    write_record(store, "run-9", end[0], {"started": "now", **end[1]})
    assert pruned(store, keep=1, later=timedelta(0)) == []


def test_a_run_on_which_a_step_goes_on_has_not_ended(store: FolderStore) -> None:
    write_record(store, "run-9", "ingest", {"status": "done", "started": "now"})
    write_record(store, "run-9", "train-0", {"status": "failed", "started": "now"})
    write_record(store, "run-9", "train-1", {"status": "running", "started": "now"})
    with pytest.raises(ConflictError, match="run run-9 may be under way; prune when it has ended, or after 20"):
        pruned(store, keep=1, later=timedelta(0))


def test_the_newest_releases_are_those_published_last_whatever_their_names(store: FolderStore) -> None:
    for number, version in enumerate(("20261101T000000Z-a", "20261108T000000Z-b", "19700101T000000Z-c")):
        release(store, version)
        make_old(store, f"releases/{version}/", days=60 - number)
    assert [group.name for group in pruned(store, keep=2) if group.kind == "release"] == ["20261101T000000Z-a"]


def test_predictions_and_delivered_alerts_go_once_they_are_old(store_of_each_kind: Store) -> None:
    for key in ("predictions/run-1/shard-00000.csv", "predictions/run-1/summary.json", "alerts/delivered/mail/1.json"):
        store_of_each_kind.put(key, b"x")
    store_of_each_kind.put("alerts/mail/2.json", b"x")
    assert pruned(store_of_each_kind, keep=1, later=timedelta(0)) == []
    groups = [(group.kind, group.name, len(group.objects)) for group in pruned(store_of_each_kind, keep=1)]
    assert groups == [("predictions", "run-1", 2), ("alerts", "delivered", 1)]
    assert list_keys(store_of_each_kind, "alerts/") == ["alerts/mail/2.json"]


def test_what_is_damaged_or_foreign_stays_is_named_and_stops_nothing(store_of_each_kind: Store) -> None:
    store = store_of_each_kind
    for version in ("v1", "v2", "v3", "v4"):
        release(store, version, put_blob(store, f"data of {version}".encode()))
    promote(store, "v4")
    store.put("batches/b.json", seal({"blob": put_blob(store, b"batch")}))
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
    plan = planned(store, keep=1)
    assert sorted(plan.left_alone) == sorted(damaged + foreign)
    pruning.carry_out(store, plan, lambda: None)
    assert list_keys(store, "releases/v1/", "releases/v3/") == ["releases/v1/notes.txt"]
    assert releases.versions(store) == ["v2", "v4"]
    for version in ("v2", "v3", "v4"):  # with what these refer to
        assert store.stat(f"runs/run-of-{version}/train.json")
        assert store.stat(find_blob(f"model {version}".encode()))
    assert store.stat(find_blob(b"data of v2"))
    assert store.stat(find_blob(b"batch"))
    assert not store.stat(find_blob(b"data of v1"))
    assert planned(store, keep=1).groups == []


def find_blob(data: bytes) -> str:
    return f"blobs/sha256/{describe('', data)['sha256']}"


def test_a_damaged_record_of_a_young_run_does_not_hide_that_it_is_under_way(store: FolderStore) -> None:
    store.put("runs/run-9/ingest.json", b"{}")
    with pytest.raises(ConflictError, match="run run-9 may be under way"):
        planned(store, keep=1, later=timedelta(0))
    assert planned(store, keep=1).left_alone.keys() == {"runs/run-9/ingest.json"}


def test_a_plan_does_not_delete_what_changed_since(store: FolderStore) -> None:
    blob, other = put_blob(store, b"taken up again"), put_blob(store, b"other")
    make_old(store, "")
    plan = pruning.plan(store, keep=1, older_than=MONTH, now=read_clock(store))
    store.put(blob["uri"], b"taken up again")
    done = pruning.carry_out(store, plan, lambda: None)
    assert done.left_alone == {blob["uri"]: "was written again meanwhile"}
    assert store.stat(blob["uri"])
    assert [group.name for group in done.groups] == [other["uri"]]


def test_large_documents_of_others_do_not_fill_the_memory(store: FolderStore) -> None:
    """As JSON, each of these takes ninety megabytes of memory."""
    for number in range(12):
        empty = b'{\n  "lists": [%s],\n  "seal": ""\n}\n' % b",".join([b"[]"] * ((MAX_BYTES >> 2) - 40))
        sealed = empty.replace(b'""', b'"%s"' % hashlib.sha256(empty).hexdigest().encode())
        store.put(f"runs/run-{number}/train.json", sealed)
    memory.reset_peak_memory()
    before = memory.read_peak_memory()
    assert len(planned(store, keep=1).groups) == 12
    assert memory.read_peak_memory() - before < 400


def test_a_document_that_is_too_large_to_be_read_stops_a_prune(store: FolderStore) -> None:
    store.put("runs/run-1/train.json", seal({}) + b" " * MAX_BYTES)
    with pytest.raises(IntegrityError, match=r"^runs/run-1/train.json: is 4,194,\d+ bytes, expected at most 4,194,304"):
        planned(store, keep=1)


def prune(store: Store) -> pruning.Plan:
    return pruning.prune(store, keep=1, older_than=MONTH)


def with_old_blob(store: FolderStore) -> str:
    key = str(put_blob(store, b"old")["uri"])
    make_old(store, key)
    return key


def test_no_work_begins_while_old_objects_are_deleted(store_of_each_kind: Store) -> None:
    with pruning_flag.forbid_work(store_of_each_kind):
        with pytest.raises(StoreError, match="try again when it has ended, at the latest in 60 minutes"):
            work(store_of_each_kind)
        with pytest.raises(ConflictError, match="another prune is under way"):
            prune_something(store_of_each_kind)
    work(store_of_each_kind)
    assert list_keys(store_of_each_kind, "working/", pruning_flag.KEY) == []


def test_nothing_is_deleted_while_work_is_under_way(store_of_each_kind: Store) -> None:
    with (
        pruning_flag.forbid_pruning(store_of_each_kind, "rollback to v1"),
        pytest.raises(ConflictError, match="rollback to v1 is under way, nothing is deleted; prune when it has ended"),
    ):
        prune_something(store_of_each_kind)
    assert list_keys(store_of_each_kind, "working/", pruning_flag.KEY) == []
    prune_something(store_of_each_kind)


def work(store: Store) -> None:
    with pruning_flag.forbid_pruning(store, "step train of run run-1"):
        pass


@pytest.mark.parametrize("days", [1, -1])
def test_the_mark_of_killed_work_expires(store: FolderStore, days: int) -> None:
    """Or is void if it was left by a clock that was ahead."""
    store.put("working/killed.txt", b"step train of run run-1")
    with pytest.raises(ConflictError, match=r"step train of run run-1 is under way.*or delete .*working/killed\.txt"):
        prune_something(store)
    make_old(store, "working/", days=days)
    prune_something(store)
    assert list_keys(store, "predictions/", "working/") == []


def prune_something(store: Store) -> None:
    store.put("predictions/run-1/summary.json", b"x")
    pruning.prune(store, keep=1, older_than=-MONTH)


@pytest.mark.parametrize("days", [1, -1])
def test_the_flag_of_a_prune_that_was_killed_expires(store: FolderStore, days: int) -> None:
    """Or is void if it was left by a clock that was ahead."""
    store.put(pruning_flag.KEY, b"left by one that was killed")
    with pytest.raises(ConflictError, match="another prune is under way; if that one was killed, prune again in 60"):
        prune_something(store)
    make_old(store, pruning_flag.KEY, days=days)
    work(store)
    prune_something(store)
    assert list_keys(store, "predictions/", pruning_flag.KEY) == []


def test_a_prune_stops_before_its_flag_expires(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = with_old_blob(store)
    seconds = iter([0.0, pruning_flag.LIFETIME.total_seconds() - 600])
    monkeypatch.setattr(pruning_flag, "_read_seconds", lambda: next(seconds))
    with pytest.raises(ConflictError, match="pruning has taken 45 minutes and stops; prune again"):
        prune(store)
    assert store.stat(key)


def test_a_prune_stops_when_another_has_begun(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = with_old_blob(store)
    monkeypatch.setattr(pruning, "carry_out", before(pruning.carry_out, lambda: store.put(pruning_flag.KEY, b"other")))
    with pytest.raises(ConflictError, match="another prune has begun, this one stops"):
        prune(store)
    assert store.stat(key)
    assert store.get(pruning_flag.KEY) == b"other"


def before(function: Callable[..., Any], happens: Callable[[], object]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        happens()
        return function(*args, **kwargs)

    return both


class InterruptedStore(FolderStore):
    """Lets something happen before one of its operations, counted from 1."""

    def __init__(self, root: Path, moment: int, happens: Callable[[], object]) -> None:
        super().__init__(root)
        self.left, self.happens = moment, happens

    def _path(self, key: str) -> Path:
        self.left -= 1
        if self.left == 0:
            self.happens()
        return super()._path(key)


def begin_run(store: Store) -> str:
    """Take up again old content that nothing refers to, as `ingest` does."""
    try:
        with pruning_flag.forbid_pruning(store, "step ingest"):
            record = {"status": "done", "started": "now", "result": {"blob": put_blob(store, b"old")}}
            write_record(store, "run-9", "ingest", record)
    except StoreError:
        return "refused"
    return "begun"


def roll_back(store: Store) -> str:
    """Make an old release the champion again, provided that it is there."""
    current = champion.champion(store)
    try:
        with pruning_flag.forbid_pruning(store, "rollback"):
            releases.read_manifest(store, "v1")
            after = current.sequence if current else 0
            champion.append(store, version="v1", action="rollback", reason="r", write_id="w", after=after)
    except (MissingError, StoreError) as error:
        return "too late" if isinstance(error, MissingError) else "refused"
    return "rolled back"


def try_to_prune(store: Store) -> str:
    try:
        return f"deleted {len(prune(store).groups)}"
    except ConflictError:
        return "refused"


@pytest.mark.parametrize("prune_begins", [True, False])
@pytest.mark.parametrize("work", [begin_run, roll_back])
def test_work_and_a_prune_that_meet_at_any_moment_never_lose_what_the_work_needs(
    tmp_path: Path, work: Callable[[Store], str], prune_begins: bool
) -> None:
    """One begins before each operation of the other on the store."""
    one, other = (try_to_prune, work) if prune_begins else (work, try_to_prune)
    outcomes = set()
    for moment in range(1, 200):
        plain, happened = FolderStore(tmp_path / str(moment)), list[str]()
        for version in ("v1", "v2", "v3"):
            release(plain, version)
        promote(plain, "v1", "v2", "v3")
        make_old(plain, "releases/")
        key = with_old_blob(plain)
        meet = partial(lambda store, happened: happened.append(other(store)), plain, happened)
        met = (one(InterruptedStore(plain.root, moment, meet)), *happened)
        outcomes.add(met)
        assert "begun" not in met or plain.stat(key), (moment, met)
        assert "rolled back" not in met or releases.read_manifest(plain, "v1"), (moment, met)
        if not happened:
            break
    assert 4 < moment < 199
    assert len(outcomes) > 2, outcomes
