"""The records of a run."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Barrier

import pytest

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.runs import find_records, make_run_key, read_record, read_records, write_record
from fmnist_tasks.schemas.runs import StepRecord
from tests.support.documents import make_record, save_record


def test_records_are_read_in_parallel_and_sorted_by_the_start_of_the_step(tmp_path: Path) -> None:
    two_readers = Barrier(2, timeout=60)

    class WaitingStore(FolderStore):
        def get(self, key: str, *limit: int) -> bytes:
            two_readers.wait()
            return super().get(key)

    store = WaitingStore(tmp_path)
    for step, started in (("alpha", "2026-11-02T00:00Z"), ("beta", "2026-11-01T00:00Z")):
        save_record(store, "run", step, started=started)
    assert list(read_records(store, "run")) == ["beta", "alpha"]


def test_the_error_names_the_damaged_record(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for step in "abc":
        save_record(store, "run", step)
    key = make_run_key("run", "b.json")
    store.put(key, store.get(key).replace(b'"started"', b'"starter"'))
    with pytest.raises(IntegrityError, match=key):
        read_records(store, "run")


def test_the_record_of_another_run_in_the_same_folder_is_not_used(tmp_path: Path) -> None:
    """Simulates a file system that ignores case."""
    save_record(FolderStore(tmp_path), "Run", "ingest")
    (tmp_path / "runs" / "Run").rename(tmp_path / "runs" / "run")
    with pytest.raises(
        IntegrityError,
        match=r"^runs/run/ingest.json is the record of step ingest of run Run, the two share a folder on this file",
    ):
        read_record(FolderStore(tmp_path), "run", "ingest")


@pytest.mark.parametrize("copy", ["runs/other/train-0.json", "runs/run/train-1.json"])
def test_a_copied_record_is_not_used(tmp_path: Path, copy: str) -> None:
    store = FolderStore(tmp_path)
    save_record(store, "run", "train-0")
    store.put(copy, store.get("runs/run/train-0.json"))
    message = f"^{copy} is the record of step train-0 of run run, so it was copied or renamed; delete it$"
    _, run, name = copy.removesuffix(".json").split("/")
    with pytest.raises(IntegrityError, match=message):
        read_record(store, run, name)
    with pytest.raises(IntegrityError, match=message):
        read_records(store, run)
    records, (fault,) = find_records(store, run)
    assert list(records) == ([] if run == "other" else ["train-0"])
    assert copy in str(fault)


def test_a_long_run_id_is_refused_by_its_length() -> None:
    with pytest.raises(SettingsError, match=r"^run ID aaaaaaaaaaaaaaaaaaaa…: has 251 characters; the limit is 250$"):
        make_run_key("a" * 251, "ingest.json")


def test_a_record_is_read_back_unchanged(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    record = make_record(
        "run", "train-0", ignored=["colour"], retryable=True, result={"accuracy": 0.5, "parts": [None]}
    )
    write_record(store, record)
    assert read_record(store, "run", "train-0") == record
    assert read_records(store, "run") == {"train-0": record}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": None}, r"has schema version 1, not 3: version 0\.1 of this project wrote it; start with"),
        ({"schema_version": 4}, "has schema version 4, not 3: install the version of this project that wrote it"),
        ({"started": None}, "started: missing; it was probably edited by hand, and is not used"),
        ({"status": "ended"}, "status: Input should be 'running', 'done', 'rejected' or 'failed'; it was probably"),
        ({"seconds": "1.0"}, "seconds: Input should be a valid number; it was probably edited by hand"),
        (
            {"parameters": {"seed": "0"}},
            "parameters.profile: missing; parameters.seed: Input should be a valid integer",
        ),
        ({"colour": "red"}, "colour: unknown; it was probably edited by hand"),
        ({"x" * 10_000: 1}, "x{79}…: unknown; it was probably edited by hand"),
        ({"started": "2026-11-23T02:00:01"}, "started: is not a time in UTC"),
        ({"started": "0001-01-01T00:00:00+14:00"}, "started: is not a time in UTC"),
        ({"created": "yesterday"}, "created: Invalid isoformat string"),
        ({"run_id": "../run"}, "run_id: String should match pattern"),
    ],
)
def test_a_document_that_is_not_the_record_of_a_step_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """Each has a valid seal; None removes the field."""
    store, key = FolderStore(tmp_path), make_run_key("run", "ingest.json")
    content = {**make_record("run", "ingest").to_json(), **changes}
    store.put(key, seal({name: content[name] for name in content if changes.get(name, 0) is not None}))

    def read_ingest_record(store: FolderStore, run_id: str) -> StepRecord:
        return read_record(store, run_id, "ingest")

    for read in (read_ingest_record, read_records):
        with pytest.raises(IntegrityError, match=f"^{key}:? {message}"):
            read(store, "run")


def test_a_record_with_text_that_is_not_unicode_is_refused() -> None:
    content = make_record("run", "ingest").to_json() | {"outcome": "\ud800"}
    with pytest.raises(IntegrityError, match=r"^k: a text has a lone surrogate, so it is not valid Unicode"):
        StepRecord.parse(content, "k")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_record_with_a_number_that_is_not_finite_is_refused(value: float) -> None:
    content = make_record("run", "ingest").to_json()
    content["parameters"]["accuracy_threshold"] = value
    with pytest.raises(IntegrityError, match=r"^k: a number is NaN or infinite; it was probably edited by hand"):
        StepRecord.parse(content, "k")


def test_records_that_would_fill_the_memory_are_not_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for number in range(5):
        store.put(make_run_key("run", f"train-{number}.json"), bytes(4 << 20))
    with pytest.raises(IntegrityError, match=r"^runs/run/\*\.json has 20,971,520 bytes, expected at most 16,777,216"):
        read_records(store, "run")
