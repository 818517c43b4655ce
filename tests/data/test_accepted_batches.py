"""Accepted batches can be withdrawn and restored, by an unambiguous name."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fmnist_tasks.data import accepted_batches
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, RejectedError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import ImageSet, WithdrawnBatch
from fmnist_tasks.steps import Run, run_step
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN, encode_npz


def accept(store: Store, name: str, digest: str, *keys: str) -> None:
    blob = Reference(uri=f"blobs/sha256/{digest}", sha256=digest, bytes=1)
    source = f"incoming/{name}"
    image_set = ImageSet(split="train", source=source, images=7, blob=blob, keys=[*keys])
    accepted_batches.accept_batch(store, image_set, blob.sha256)


@pytest.fixture(name="store")
def store_with_batches(store_of_each_kind: Store) -> Store:
    accept(store_of_each_kind, "week 1.npz", "aaaaaa" + "1" * 58, "incoming/week 1.npz")
    accept(store_of_each_kind, "week 2.npz", "aaaaaa" + "2" * 58, "incoming/week 2.npz")
    accept(store_of_each_kind, "week 2.npz", "b" * 64, "incoming/week 2.npz")
    accept(store_of_each_kind, "odd-12345678.npz", "c" * 64, "incoming/odd%E2%80%AF.npz")
    return store_of_each_kind


def list_withdrawn(store: Store) -> list[str]:
    return [batch.sha256[:7] for batch in accepted_batches.list_accepted(store) if batch.withdrawal]


def test_a_withdrawal_records_user_time_and_reason(store: Store) -> None:
    batch = accepted_batches.withdraw_batch(store, "week 1.npz", by="ada", reason=" labels are shifted ")
    (withdrawn,) = (batch for batch in accepted_batches.list_accepted(store) if batch.withdrawal)
    assert withdrawn.decisions == batch.decisions
    decision = withdrawn.withdrawal
    assert decision
    assert (decision.action, decision.by, decision.reason) == ("withdraw", "ada", "labels are shifted")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(decision.time)) < timedelta(minutes=5)
    assert withdrawn.to_json()["withdrawn"].endswith("by ada: labels are shifted")
    assert withdrawn.to_json() | {"withdrawn": "", "accepted": ""} == {
        "batch": "week 1.npz",
        "sha256": "aaaaaa" + "1" * 58,
        "images": 7,
        "accepted": "",
        "withdrawn": "",
    }
    accepted_batches.restore_batch(store, "week 1.npz", by="bob", reason="they are not")
    (restored,) = (batch for batch in accepted_batches.list_accepted(store) if batch.name == "week 1.npz")
    assert restored.withdrawal is None
    assert [decision.action for decision in restored.decisions] == ["withdraw", "restore"]


@pytest.mark.parametrize(
    "name", ["odd\u202f.npz", "odd%E2%80%AF.npz", "incoming/odd%E2%80%AF.npz", "odd-12345678.npz", "cccccc"]
)
def test_a_batch_is_named_by_its_file_or_its_digest(store: Store, name: str) -> None:
    accepted_batches.withdraw_batch(store, name, by="ada", reason="r")
    assert list_withdrawn(store) == ["ccccccc"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("week 2.npz", RejectedError, r"matches 2 batches: aaaaaa222222 \(week 2.npz\), bbbbbbbbbbbb \(week 2.npz\)"),
        ("aaaaaa", RejectedError, r"matches 2 batches: .* use the SHA-256 of one of them"),
        ("ccccc", MissingError, "no batch has the name ccccc or a SHA-256 that begins with it"),
        ("week", MissingError, "no batch has the name week"),
        ("", MissingError, "no batch has the name"),
    ],
)
def test_an_unknown_or_ambiguous_name_is_refused(store: Store, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        accepted_batches.withdraw_batch(store, name, by="ada", reason="r")
    assert list_withdrawn(store) == []


def test_a_decision_without_a_reason_or_effect_is_refused(store: Store) -> None:
    with pytest.raises(RejectedError, match="a reason is required to withdraw a batch"):
        accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason=" ")
    with pytest.raises(RejectedError, match="is not withdrawn"):
        accepted_batches.restore_batch(store, "bbbbbb", by="ada", reason="r")
    accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason="r")
    with pytest.raises(RejectedError, match="is already withdrawn"):
        accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason="r")


def test_one_of_two_simultaneous_decisions_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = accepted_batches.list_accepted(store)
    accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason="first")
    monkeypatch.setattr(accepted_batches, "find_accepted", lambda _: (before, []))
    with pytest.raises(ConflictError, match="somebody else withdrew or restored"):
        accepted_batches.withdraw_batch(store, "bbbbbb", by="bob", reason="second")
    monkeypatch.undo()
    (batch,) = (batch for batch in accepted_batches.list_accepted(store) if batch.withdrawal)
    assert batch.withdrawal
    assert batch.withdrawal.by == "ada"


def test_a_lost_response_is_not_a_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = type(store).put_if_absent

    def create_and_forget(self: Store, key: str, data: bytes) -> bool:
        create(self, key, data)
        return False

    monkeypatch.setattr(type(store), "put_if_absent", create_and_forget)
    assert accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason="r").withdrawal


def test_foreign_objects_are_ignored(store: Store) -> None:
    store.put("batches/notes.txt", b"x")
    store.put(f"batches/{'b' * 64}/notes.json", b"x")
    assert len(accepted_batches.list_accepted(store)) == 4


def rename(store: Store, old: str, new: str) -> None:
    store.put(new, store.get(old))
    store.delete(old)


B, D = "b" * 64, "d" * 64  # a batch that is withdrawn, and a digest that no batch has
DECISION = {"batch": B, "number": 1, "action": "withdraw", "by": "ada", "reason": "r", "write_id": "w"} | {
    "time": "2026-11-23T02:00:00+00:00"
}


@pytest.mark.parametrize(
    ("manipulate", "message"),
    [
        (
            lambda store: store.put(f"batches/{D}.json", store.get(f"batches/{B}.json")),
            f"batches/{D}.json is the document of batch bbbbbbbbbbbb, so it was copied or renamed; it is not used",
        ),
        (
            lambda store: store.put(f"batches/{'c' * 64}/00000001.json", store.get(f"batches/{B}/00000001.json")),
            f"batches/{'c' * 64}/00000001.json is decision 1 about batch bbbbbbbbbbbb, so it was copied or renamed",
        ),
        (
            lambda store: rename(store, f"batches/{B}/00000001.json", f"batches/{D}/00000001.json"),
            f"batches/{D}.json is missing, but there are decisions about this batch; restore it from a backup",
        ),
        (
            lambda store: rename(store, f"batches/{B}/00000001.json", f"batches/{B}/00000003.json"),
            f"batches/{B}/00000001.json is missing, but batches/{B}/00000003.json exists; restore it from a backup",
        ),
        (lambda store: store.put(f"batches/{B}.json", b"{"), f"batches/{B}.json: its bytes were changed"),
    ],
    ids=["a copied batch", "a copied decision", "a renamed folder", "a gap", "a damaged batch"],
)
def test_a_withdrawn_batch_never_returns_by_a_copied_or_lost_document(
    store: Store, manipulate: Callable[[Store], None], message: str
) -> None:
    """The fault stops a run; other batches can still be listed and withdrawn."""
    accepted_batches.withdraw_batch(store, "bbbbbb", by="ada", reason="labels swapped")
    manipulate(store)
    with pytest.raises(IntegrityError, match=f"^{re.escape(message)}"):
        accepted_batches.list_accepted(store)
    intact, (fault,) = accepted_batches.find_accepted(store)
    assert str(fault).startswith(message)
    assert "week 1.npz" in {batch.name for batch in intact}
    assert accepted_batches.withdraw_batch(store, "week 1.npz", by="ada", reason="r").withdrawal


def test_a_withdrawn_batch_leaves_the_dataset_and_is_not_accepted_again(pipeline: Pipeline) -> None:
    images, labels = synthetic.make_images(200, 9)
    data = encode_npz(images=images, labels=labels)
    pipeline.store.put("incoming/bad week.npz", data)
    run_step("ingest", RUN)
    first = run_step("validate_data", RUN)
    batch = accepted_batches.withdraw_batch(pipeline.store, "bad week.npz", by="ada", reason="labels are shifted")

    pipeline.store.put("incoming/again.npz", encode_npz(images=images, labels=labels.astype(np.int64)))
    ingestion = run_step("ingest", Run("run-2", RUN.created, RUN.parameters))
    assert ingestion.withdrawn == [WithdrawnBatch(name="bad week.npz", withdrawn=batch.describe_withdrawal())]
    second = run_step("validate_data", Run("run-2", RUN.created, RUN.parameters))
    assert second.dataset.fingerprint == ingestion.dataset.fingerprint != first.dataset.fingerprint
    assert len(second.dataset.image_sets) == 2
    (entry,) = second.quarantined
    assert entry.name == "again.npz"
    assert "the same content was withdrawn on" in entry.reasons[0]
    assert "by ada: labels are shifted" in entry.reasons[0]
    assert pipeline.store.stat(batch.image_set.blob.uri)  # the content stays in the store

    accepted_batches.restore_batch(pipeline.store, batch.sha256, by="ada", reason="they were right")
    assert run_step("ingest", Run("run-3", RUN.created, RUN.parameters)).dataset == first.dataset


def test_documents_of_version_0_1_are_refused(store: Store) -> None:
    """They have no version, and the fields of the image set are at the top level."""
    blob = {"uri": "u", "sha256": "e" * 64, "bytes": 1}
    document = {"split": "train", "source": "incoming/old.npz", "images": 3, "blob": blob, "keys": []}
    key = f"batches/{blob['sha256']}.json"
    store.put(key, seal(document))
    with pytest.raises(IntegrityError, match=f"^{key} has schema version 1, not 3: version 0.1 of this project wrote"):
        accepted_batches.list_accepted(store)


@pytest.mark.parametrize(
    ("key", "content", "fault"),
    [
        ("b" * 64, {"image_set": {"split": "train"}}, "image_set.source: missing"),
        ("b" * 64, {}, "image_set: missing"),
        (f"{B}/00000001", DECISION | {"action": "forget"}, "action: Input should be 'withdraw' or 'restore'"),
        (f"{B}/00000001", DECISION | {"by": 1}, "by: Input should be a valid string"),
    ],
)
def test_the_error_about_an_invalid_document_names_its_key(
    store: Store, key: str, content: dict[str, object], fault: str
) -> None:
    store.put(f"batches/{key}.json", seal({"schema_version": 2} | content))
    with pytest.raises(IntegrityError, match=f"^batches/{key}.json: {fault}"):
        accepted_batches.list_accepted(store)
