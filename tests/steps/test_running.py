"""A step that has begun says so, and excludes pruning."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fmnist_tasks import steps
from fmnist_tasks.data import sources
from fmnist_tasks.data.dataset import load_test
from fmnist_tasks.errors import ConflictError, DataError, RejectedError, StoreError
from fmnist_tasks.registry import pruning, pruning_flag
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.steps import run_again, step
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

MONTH = timedelta(days=30)


def test_nothing_is_pruned_while_ingest_takes_up_old_content_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that is there is not written again, and nothing refers to it before `ingest` ends."""
    dataset = steps.ingest(RUN)["dataset"]
    for stat in list(pipeline.store.list("runs/")):
        pipeline.store.delete(stat.key)
    for stat in pipeline.store.list("blobs/"):
        os.utime(pipeline.store.root / stat.key, (0, 0))
    load, refused = sources.load_base, []

    def prune_and_load(*args: Any) -> Any:
        with pytest.raises(
            ConflictError, match="step ingest of run run-1 is under way, nothing is deleted; prune when it has ended"
        ) as caught:
            pruning.prune(pipeline.store, keep=1, older_than=MONTH)
        refused.append(caught)
        return load(*args)

    monkeypatch.setattr(sources, "load_base", prune_and_load)
    assert (steps.ingest(RUN)["dataset"], len(refused)) == (dataset, 1)
    load_test(pipeline.store, dataset)


def test_a_step_that_would_begin_during_a_prune_is_tried_again(pipeline: Pipeline) -> None:
    with pruning_flag.forbid_work(pipeline.store), pytest.raises(StoreError, match="`fmnist prune` is deleting"):
        steps.ingest(RUN)
    steps.ingest(RUN)
    assert read_record(pipeline.store, RUN.id, "ingest")["status"] == "done"


def test_a_step_says_that_it_is_running_but_for_a_result_that_it_has(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, str]] = []
    write = step.write_record

    def watch(store: Any, run_id: str, name: str, record: dict[str, Any]) -> None:
        written.append((name, record["status"]))
        write(store, run_id, name, record)

    def list_written() -> list[tuple[str, str]]:
        found = written[:]
        written.clear()
        return found

    monkeypatch.setattr(step, "write_record", watch)
    label = pipeline.data / "test_labels.gz"
    hidden = label.rename(label.with_suffix(".hidden"))
    with pytest.raises(DataError):
        steps.ingest(RUN)
    hidden.rename(label)
    assert list_written() == [("ingest", "running"), ("ingest", "failed")]
    for _ in range(2):  # ingest begins the run anew
        steps.ingest(RUN)
        assert list_written() == [("ingest", "running"), ("ingest", "done")]
    result = {"dataset": read_record(pipeline.store, RUN.id, "ingest")["result"]["dataset"]}
    done = {"status": "done", "started": "2", "parameters": RUN.parameters.as_json(), "result": result}
    write(pipeline.store, RUN.id, "validate_data", done)
    monkeypatch.setattr(step, "build_report", lambda *_: b"")
    run_again("detect_change", RUN)
    assert list_written() == [("detect_change", "running"), ("detect_change", "done")]
    run_again("detect_change", RUN)
    assert list_written() == [("detect_change", "done")]
    write(pipeline.store, RUN.id, "ingest", {"status": "running", "started": "3"})
    with pytest.raises(RejectedError, match="ingest of run run-1 is running, or was stopped before it ended"):
        run_again("validate_data", RUN)


def test_results_with_other_parameters_are_not_taken_up(pipeline: Pipeline) -> None:
    """`fmnist ingest --run` with the name of an earlier run begins that anew."""
    steps.ingest(RUN)
    other = replace(RUN, parameters=replace(RUN.parameters, seed=7))
    with pytest.raises(RejectedError, match="ingest of run run-1 had another seed: run it again first"):
        run_again("validate_data", other)


def test_nothing_is_pruned_while_a_step_that_has_a_result_runs_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def prune(*_: Any) -> bytes:
        with pytest.raises(ConflictError, match="step detect_change of run run-1 is under way") as caught:
            pruning.prune(pipeline.store, keep=1, older_than=MONTH)
        refused.append(caught)
        return b""

    dataset = steps.ingest(RUN)["dataset"]
    monkeypatch.setattr(step, "build_report", prune)
    for _ in range(2):
        steps.detect_change(RUN, read_record(pipeline.store, RUN.id, "ingest")["result"], {"dataset": dataset})
    assert len(refused) == 2
