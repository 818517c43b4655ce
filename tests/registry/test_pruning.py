"""Pruning deletes what nothing needs any more, and nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.blobs import put_blob
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.registry.store import Store

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


def pruned(store: Store, keep: int, later: timedelta = 2 * MONTH, older_than: timedelta = MONTH) -> list[pruning.Group]:
    groups = pruning.plan(store, keep=keep, older_than=older_than, now=datetime.now(UTC) + later)
    before = {stat.key for stat in store.list("")}
    pruning.carry_out(store, groups)
    gone = before - {stat.key for stat in store.list("")}
    assert gone == {stat.key for group in groups for stat in group.objects}
    return groups


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
            long_ago = (datetime.now(UTC) - 2 * MONTH).timestamp()
            for stat in store.list(""):
                os.utime(store.root / stat.key, (long_ago, long_ago))
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
    first = pruning.plan(store, keep=1, older_than=MONTH, now=datetime.now(UTC) + 2 * MONTH)[0]
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


def test_a_damaged_manifest_stops_pruning(store: FolderStore) -> None:
    for version in ("v1", "v2"):
        release(store, version)
    store.put("releases/v2/manifest.json", b"{}")
    with pytest.raises(IntegrityError, match=r"releases/v2/manifest\.json"):
        pruned(store, keep=1)
    assert releases.versions(store) == ["v1", "v2"]
