"""Withdrawals apply to later runs: whole runs of the DAGs, with recorded training results."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fmnist_tasks.data.accepted_batches import list_accepted
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import get_verified, put_blob
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.serving.rollback import roll_back
from tests.support import synthetic
from tests.support.airflow_in_process import AirflowInProcess
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

QUICK = {"profile": "quick"}


def make_other_model(pipeline: Pipeline) -> Reference:
    """Another model with the predictions of the finished run's candidate: HDF5 ignores trailing bytes."""
    candidate = pipeline.read_result("fine_tune").candidate.model
    return put_blob(pipeline.store, get_verified(pipeline.store, candidate) + b"another")


def put_batch(pipeline: Pipeline, seed: int) -> None:
    images, labels = synthetic.make_images(200, seed)
    pipeline.store.put("incoming/week.npz", synthetic.encode_npz(images=images, labels=labels))


def train_other_model(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    """Let each later training give the same other model, as if data, code and parameters were equal."""
    model = make_other_model(pipeline)
    candidate = pipeline.read_result("fine_tune").candidate.to_json()
    changes = {
        "fine_tune": {"candidate": candidate | {"model": model.to_json()}},
        "evaluate_tuned": {"model_sha256": model.sha256},
    }
    replay_steps(patch, pipeline.store, changes)


def count_events(airflow: AirflowInProcess) -> int:
    ((count,),) = airflow.query_database("select count(*) from asset_event")
    return int(count)


def test_a_rolled_back_release_is_not_promoted_again(
    airflow: AirflowInProcess, finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = finished_pipeline.store, require_champion(finished_pipeline.store).version
    train_other_model(finished_pipeline, monkeypatch)
    put_batch(finished_pipeline, seed=9)
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    second = require_champion(store).version
    assert second != first

    events = count_events(airflow)
    conf = {"version": first, "reason": "week 2 was bad", "replaces": second}
    code, output = airflow.test_dag("fmnist_rollback", **conf)
    assert code == 0, output
    assert count_events(airflow) == events + 1
    (extra,) = airflow.query_database("select extra from asset_event order by id")[-1]
    assert json.loads(extra) == {"version": first, "sequence": 3}
    code, output = airflow.test_dag("fmnist_rollback", **conf | {"version": second})
    assert (code, f"the champion is {first}, not {second}" in output) == (1, True), output

    before = champion.list_entries(store)
    for _ in range(2):
        code, output = airflow.test_dag(**QUICK)
        assert code == 1, output
        assert "ALERT rejected" in output
        assert (
            f"is the model of release {second}, or comes from the same data, code and parameters, and that release was "
            in output
        )
        assert "week 2 was bad. Withdraw the batch" in output
        assert champion.list_entries(store) == before
    assert count_events(airflow) == events + 1

    code, output = airflow.test_dag("fmnist_withdraw", action="restore", name=second, reason="it was good after all")
    assert code == 0, output
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    assert require_champion(store).model_sha256 == read_model_digest(finished_pipeline, second)


def test_a_batch_is_withdrawn_and_restored_with_the_form(
    airflow: AirflowInProcess, replaying_pipeline: Pipeline
) -> None:
    put_batch(replaying_pipeline, seed=9)
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    (batch,) = list_accepted(replaying_pipeline.store)
    version = require_champion(replaying_pipeline.store).version
    dataset = releases.read_manifest(replaying_pipeline.store, version).dataset
    assert [image_set.blob.sha256 for image_set in dataset.batches] == [batch.sha256]
    conf = {"name": batch.sha256[:12], "reason": "its labels are wrong"}
    code, output = airflow.test_dag("fmnist_withdraw", **conf)
    assert code == 0, output
    (batch,) = list_accepted(replaying_pipeline.store)
    assert batch.withdrawal
    assert (batch.withdrawal.by, batch.withdrawal.reason) == ("dag_test", "its labels are wrong")
    code, output = airflow.test_dag("fmnist_withdraw", **conf)
    assert (code, "is already withdrawn" in output) == (1, True), output
    code, output = airflow.test_dag("fmnist_withdraw", **conf | {"action": "restore"})
    assert code == 0, output
    assert list_accepted(replaying_pipeline.store)[0].withdrawal is None
    code, output = airflow.test_dag("fmnist_withdraw", **conf | {"name": "nothing"})
    assert (code, "there is neither a release nor a batch 'nothing'" in output) == (1, True), output


def read_model_digest(pipeline: Pipeline, version: str) -> str:
    return releases.read_manifest(pipeline.store, version).model_sha256


def test_promote_of_an_earlier_run_cleared_after_a_rollback_changes_and_announces_nothing(
    airflow: AirflowInProcess, finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = finished_pipeline.store, require_champion(finished_pipeline.store).version
    train_other_model(finished_pipeline, monkeypatch)
    code, output = airflow.test_dag(**QUICK, seed=3)
    assert code == 0, output
    entry = require_champion(store)
    roll_back(store, first, "the second was worse", actor="ann")
    before, events = champion.list_entries(store), count_events(airflow)
    code, output = airflow("tasks", "test", "fmnist_retrain", "release.promote", entry.write_id)
    assert code == 0, output
    message = (
        f"{entry.version} was promoted before (log entry 2); the champion is now {first}, by rollback (log entry 3)"
    )
    assert message in output
    assert "skip" in output.lower()
    assert champion.list_entries(store) == before
    assert count_events(airflow) == events
    repeated = finished_pipeline.read_result("promote", replace(RUN, id=entry.write_id))
    assert repeated.is_current is False
