"""The panels of the overview: the last run and its result, the next run, and the quarantine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from fmnist_tasks.page.activity import MAX_QUARANTINED, Schedule, list_quarantine, read_last_run
from fmnist_tasks.registry.folder import FolderStore
from tests.support.documents import save_record

RUN = "scheduled__2026-11-23T02:00:00+00:00"


@pytest.fixture
def store(tmp_path: Any) -> FolderStore:
    return FolderStore(tmp_path)


def read_result(store: FolderStore, state: str) -> tuple[str, str]:
    run = read_last_run(store, Schedule(last_run_id=RUN, last_run_state=state))
    assert run is not None
    return run.result, run.outcome


def test_without_a_run_there_is_no_last_run(store: FolderStore) -> None:
    assert read_last_run(store, Schedule()) is None
    result, outcome = read_result(store, "failed")
    assert (result, "open the run in Airflow" in outcome) == ("failed", True)


def test_a_run_is_summarised_by_its_decisive_step(store: FolderStore) -> None:
    save_record(store, RUN, "ingest")
    assert read_result(store, "running") == ("running", "ingest is done.")
    save_record(store, RUN, "train-0", status="running", started="2026-11-23T02:01:00+00:00")
    assert read_result(store, "running") == ("running", "train-0 is running.")
    save_record(store, RUN, "accuracy_gate", status="rejected", outcome="too weak", started="2026-11-23T02:02:00+00:00")
    assert read_result(store, "failed") == ("rejected", "accuracy_gate: too weak")


@pytest.mark.parametrize(
    ("step", "result", "state", "expected"),
    [
        ("detect_change", {"changed": False}, "success", "unchanged"),
        ("promotion_gate", {"decision": "hold"}, "running", "waiting"),
        ("promotion_gate", {"decision": "promote"}, "running", "running"),
        ("promotion_gate", {"decision": "hold"}, "failed", "failed"),
        ("promote", {}, "success", "promoted"),
    ],
)
def test_the_last_step_determines_the_result(
    store: FolderStore, step: str, result: dict[str, Any], state: str, expected: str
) -> None:
    save_record(store, RUN, step, result=result)
    assert read_result(store, state)[0] == expected


def test_a_damaged_record_is_reported_by_name(store: FolderStore) -> None:
    store.put(f"runs/{RUN}/ingest.json", b"{}")
    result, outcome = read_result(store, "success")
    assert (result, f"runs/{RUN}/ingest.json" in outcome) == ("unknown", True)


def test_quarantine_shows_the_newest_batches_with_their_reasons(store: FolderStore) -> None:
    assert list_quarantine(store) == []
    for number in range(MAX_QUARANTINED + 2):
        store.put(
            f"quarantine/{RUN}/week-{number:02}.reason.txt", b"labels: 3 are above 9\nimage distribution\n\nmoved\n"
        )
        store.put(f"quarantine/{RUN}/week-{number:02}.npz", b"images")
    store.put("quarantine/stray.reason.txt", b"of no run")
    batches = list_quarantine(store)
    assert len(batches) == MAX_QUARANTINED
    assert {batch.name for batch in batches} <= {f"week-{number:02}" for number in range(MAX_QUARANTINED + 2)}
    assert batches[0].run_id == RUN
    assert batches[0].reason == "labels: 3 are above 9; image distribution"
    assert batches[0].time <= datetime.now(UTC)
