"""A step saves in its record that it is running, and no prune runs at the same time."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fmnist_tasks import steps
from fmnist_tasks.data import sources
from fmnist_tasks.data.dataset import load_test_split
from fmnist_tasks.errors import ConflictError, DataError, RejectedError, StoreError
from fmnist_tasks.registry import pruning, pruning_markers
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.runs import ChangeResult, StepRecord, ValidationResult
from fmnist_tasks.steps import run_step, step
from tests.support.documents import save_record
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

MONTH = timedelta(days=30)


def test_nothing_is_pruned_while_ingest_reuses_old_content(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing content is not written again, and no document refers to it before `ingest` ends."""
    dataset = run_step("ingest", RUN).dataset
    for stat in list(pipeline.store.list("runs/")):
        pipeline.store.delete(stat.key)
    for stat in pipeline.store.list("blobs/"):
        os.utime(pipeline.store.root / stat.key, (0, 0))
    load, refusals = sources.load_base, []

    def prune_and_load(*args: Any) -> Any:
        with pytest.raises(
            ConflictError,
            match="step ingest of run run-1 is in progress, so nothing is deleted; prune when it has ended",
        ) as refusal:
            pruning.prune(pipeline.store, keep=1, older_than=MONTH)
        refusals.append(refusal)
        return load(*args)

    monkeypatch.setattr(sources, "load_base", prune_and_load)
    assert (run_step("ingest", RUN).dataset, len(refusals)) == (dataset, 1)
    load_test_split(pipeline.store, dataset)


def test_a_step_that_starts_during_a_prune_can_be_retried(pipeline: Pipeline) -> None:
    with pruning_markers.forbid_work(pipeline.store), pytest.raises(StoreError, match="`fmnist prune` is deleting"):
        run_step("ingest", RUN)
    run_step("ingest", RUN)
    assert read_record(pipeline.store, RUN.id, "ingest").status == "done"


def test_a_step_saves_that_it_is_running_unless_it_has_a_result(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[str, str]] = []

    def log_and_write(store: Store, record: StepRecord) -> None:
        writes.append((record.step, record.status))
        write_record(store, record)

    def take_writes() -> list[tuple[str, str]]:
        latest = writes[:]
        writes.clear()
        return latest

    monkeypatch.setattr(step, "write_record", log_and_write)
    label = pipeline.data / "test_labels.gz"
    hidden = label.rename(label.with_suffix(".hidden"))
    with pytest.raises(DataError):
        run_step("ingest", RUN)
    hidden.rename(label)
    assert take_writes() == [("ingest", "running"), ("ingest", "failed")]
    for _ in range(2):  # ingest starts the run again
        run_step("ingest", RUN)
        assert take_writes() == [("ingest", "running"), ("ingest", "done")]
    add_validation(pipeline)
    run_step("detect_change", RUN)
    assert take_writes() == [("detect_change", "running"), ("detect_change", "done")]
    run_step("detect_change", RUN)
    assert take_writes() == [("detect_change", "done")]
    save_record(pipeline.store, RUN.id, "ingest", status="running")
    with pytest.raises(RejectedError, match="ingest of run run-1 is running, or was killed before it ended"):
        run_step("validate_data", RUN)


def add_validation(pipeline: Pipeline) -> None:
    """Save a record of `validate_data` without checks."""
    result = ValidationResult(
        summary="as expected",
        dataset=pipeline.read_result("ingest").dataset,
        checks={},
        drift={},
        accepted=[],
        quarantined=[],
        waiting=[],
        data_docs="",
    )
    parameters = RUN.parameters.to_json()
    save_record(pipeline.store, RUN.id, "validate_data", parameters=parameters, result=result.to_json())


def test_results_with_other_parameters_are_not_used(pipeline: Pipeline) -> None:
    """`fmnist ingest --run` with the name of an earlier run starts that run again."""
    run_step("ingest", RUN)
    other = replace(RUN, parameters=replace(RUN.parameters, seed=7))
    with pytest.raises(RejectedError, match="ingest of run run-1 was run with a different seed; run it again first"):
        run_step("validate_data", other)


def test_nothing_is_pruned_while_a_step_that_has_a_result_runs_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = []

    def prune(*_: Any) -> ChangeResult:
        with pytest.raises(ConflictError, match="step detect_change of run run-1 is in progress") as refusal:
            pruning.prune(pipeline.store, keep=1, older_than=MONTH)
        refusals.append(refusal)
        return ChangeResult(summary="pruned", changed=True, seeds=[0], reasons=["pruned"], champion=None)

    run_step("ingest", RUN)
    add_validation(pipeline)
    monkeypatch.setitem(steps.STEPS, "detect_change", replace(steps.STEPS["detect_change"], function=prune))
    for _ in range(2):
        run_step("detect_change", RUN)
    assert len(refusals) == 2
