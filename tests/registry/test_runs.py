"""The records of a run."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier

import pytest

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.runs import read_record, read_records, run_key, write_record


def test_records_are_read_side_by_side_and_come_in_the_order_in_which_steps_began(tmp_path: Path) -> None:
    both = Barrier(2, timeout=60)

    class Slow(FolderStore):
        def get(self, key: str, *limit: int) -> bytes:
            both.wait()  # for another reader
            return super().get(key)

    store = Slow(tmp_path)
    for step, started in (("alpha", "2026-11-02"), ("beta", "2026-11-01")):
        write_record(store, "run", step, {"started": started})
    assert list(read_records(store, "run")) == ["beta", "alpha"]


def test_a_damaged_record_among_others_is_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for step in "abc":
        write_record(store, "run", step, {"started": step})
    key = run_key("run", "b.json")
    store.put(key, store.get(key).replace(b'"started"', b'"starter"'))
    with pytest.raises(IntegrityError, match=key):
        read_records(store, "run")


def test_the_record_of_another_run_in_the_same_folder_is_not_used(tmp_path: Path) -> None:
    """As on a file system that takes upper and lower case for the same."""
    write_record(FolderStore(tmp_path), "Run", "ingest", {"started": "a"})
    (tmp_path / "runs" / "Run").rename(tmp_path / "runs" / "run")
    with pytest.raises(IntegrityError, match=r"is the record of run Run, whose folder is the same"):
        read_record(FolderStore(tmp_path), "run", "ingest")
