"""Accepted batches can be withdrawn and restored, by a name that means one of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fmnist_tasks import steps
from fmnist_tasks.data import batches
from fmnist_tasks.errors import ConflictError, MissingError, RejectedError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.store import Store
from fmnist_tasks.steps import Run
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN, encode_npz


def accept(store: Store, name: str, digest: str, *keys: str) -> None:
    blob = {"uri": f"blobs/sha256/{digest}", "sha256": digest, "bytes": 1}
    batches.accept(store, {"split": "train", "source": f"incoming/{name}", "images": 7, "blob": blob, "keys": [*keys]})


@pytest.fixture(name="store")
def store_with_batches(store_of_each_kind: Store) -> Store:
    accept(store_of_each_kind, "week 1.npz", "aaaaaa" + "1" * 58, "incoming/week 1.npz")
    accept(store_of_each_kind, "week 2.npz", "aaaaaa" + "2" * 58, "incoming/week 2.npz")
    accept(store_of_each_kind, "week 2.npz", "b" * 64, "incoming/week 2.npz")
    accept(store_of_each_kind, "odd-12345678.npz", "c" * 64, "incoming/odd%E2%80%AF.npz")
    return store_of_each_kind


def withdrawn(store: Store) -> list[str]:
    return [batch.sha256[:7] for batch in batches.list_accepted(store) if batch.withdrawn]


def test_who_withdrew_a_batch_when_and_why_is_kept(store: Store) -> None:
    batch = batches.withdraw(store, "week 1.npz", by="ada", reason=" labels are shifted ")
    (found,) = (batch for batch in batches.list_accepted(store) if batch.withdrawn)
    assert found.decisions == batch.decisions
    decision = found.withdrawn
    assert (decision.action, decision.by, decision.reason) == ("withdraw", "ada", "labels are shifted")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(decision.time)) < timedelta(minutes=5)
    assert found.as_json()["withdrawn"].endswith("by ada: labels are shifted")
    assert found.as_json() | {"withdrawn": "", "accepted": ""} == {
        "batch": "week 1.npz",
        "sha256": "aaaaaa" + "1" * 58,
        "images": 7,
        "accepted": "",
        "withdrawn": "",
    }
    batches.restore(store, "week 1.npz", by="bob", reason="they are not")
    (found,) = (batch for batch in batches.list_accepted(store) if batch.name == "week 1.npz")
    assert (found.withdrawn, [one.action for one in found.decisions]) == (None, ["withdraw", "restore"])


@pytest.mark.parametrize(
    "name", ["odd\u202f.npz", "odd%E2%80%AF.npz", "incoming/odd%E2%80%AF.npz", "odd-12345678.npz", "cccccc"]
)
def test_a_batch_is_named_by_its_file_or_its_digest(store: Store, name: str) -> None:
    batches.withdraw(store, name, by="ada", reason="r")
    assert withdrawn(store) == ["ccccccc"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("week 2.npz", RejectedError, r"means 2 batches: aaaaaa222222 \(week 2.npz\), bbbbbbbbbbbb \(week 2.npz\)"),
        ("aaaaaa", RejectedError, r"means 2 batches: .* name one by its SHA-256"),
        ("ccccc", MissingError, "no batch is called ccccc"),
        ("week", MissingError, "no batch is called week"),
        ("", MissingError, "no batch is called"),
    ],
)
def test_a_name_that_means_none_or_several_is_refused(
    store: Store, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        batches.withdraw(store, name, by="ada", reason="r")
    assert withdrawn(store) == []


def test_a_decision_needs_a_reason_and_changes_something(store: Store) -> None:
    with pytest.raises(RejectedError, match="needs a reason"):
        batches.withdraw(store, "bbbbbb", by="ada", reason=" ")
    with pytest.raises(RejectedError, match="is not withdrawn"):
        batches.restore(store, "bbbbbb", by="ada", reason="r")
    batches.withdraw(store, "bbbbbb", by="ada", reason="r")
    with pytest.raises(RejectedError, match="is already withdrawn"):
        batches.withdraw(store, "bbbbbb", by="ada", reason="r")


def test_of_two_decisions_at_once_one_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = batches.list_accepted(store)
    batches.withdraw(store, "bbbbbb", by="ada", reason="first")
    monkeypatch.setattr(batches, "list_accepted", lambda _: before)
    with pytest.raises(ConflictError, match="somebody else decided"):
        batches.withdraw(store, "bbbbbb", by="bob", reason="second")
    monkeypatch.undo()
    (batch,) = (batch for batch in batches.list_accepted(store) if batch.withdrawn)
    assert batch.withdrawn.by == "ada"


def test_a_lost_answer_is_no_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = type(store).put_if_absent

    def create_and_forget(self: Store, key: str, data: bytes) -> bool:
        create(self, key, data)
        return False

    monkeypatch.setattr(type(store), "put_if_absent", create_and_forget)
    assert batches.withdraw(store, "bbbbbb", by="ada", reason="r").withdrawn


def test_what_others_put_beside_the_documents_is_ignored(store: Store) -> None:
    store.put("batches/notes.txt", b"x")
    store.put(f"batches/{'d' * 64}/00000001.json", seal({"action": "withdraw"}))
    assert len(batches.list_accepted(store)) == 4


def test_a_withdrawn_batch_leaves_the_dataset_and_does_not_come_back(pipeline: Pipeline) -> None:
    images, labels = synthetic.make_images(200, 9)
    data = encode_npz(images=images, labels=labels)
    pipeline.store.put("incoming/bad week.npz", data)
    first = steps.validate_data(RUN, steps.ingest(RUN))
    batch = batches.withdraw(pipeline.store, "bad week.npz", by="ada", reason="labels are shifted")

    pipeline.store.put("incoming/again.npz", encode_npz(images=images, labels=labels.astype(np.int64)))
    ingested = steps.ingest(Run("run-2", RUN.created, RUN.parameters))
    assert [row["batch"] for row in ingested["withdrawn"]] == ["bad week.npz"]
    second = steps.validate_data(Run("run-2", RUN.created, RUN.parameters), ingested)
    assert second["dataset"]["fingerprint"] == ingested["dataset"]["fingerprint"] != first["dataset"]["fingerprint"]
    assert len(second["dataset"]["parts"]) == 2
    (entry,) = second["quarantined"]
    assert entry["batch"] == "again.npz"
    assert "the same content was withdrawn on" in entry["reasons"][0]
    assert "by ada: labels are shifted" in entry["reasons"][0]
    assert pipeline.store.stat(batch.part["blob"]["uri"])  # what was withdrawn is kept

    batches.restore(pipeline.store, batch.sha256, by="ada", reason="they were right")
    assert steps.ingest(Run("run-3", RUN.created, RUN.parameters))["dataset"] == first["dataset"]


def test_documents_of_earlier_versions_are_read(store: Store) -> None:
    blob = {"uri": "u", "sha256": "e" * 64, "bytes": 1}
    part = {"split": "train", "source": "incoming/old.npz", "images": 3, "blob": blob}
    store.put(f"batches/{blob['sha256']}.json", seal(part))
    assert batches.withdraw(store, "old.npz", by="ada", reason="r").withdrawn
