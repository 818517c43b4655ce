"""What Airflow's failure callbacks report: which event, from whom, and when it is another alert."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.exceptions import HITLRejectException, HITLTimeoutError

from fmnist_tasks import alerts, service
from fmnist_tasks.alerts import Alert
from fmnist_tasks.errors import RejectedError, StoreError
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.settings import DAG_ID, PROJECT
from tests.support.outbox import read_alerts
from tests.support.pipeline import Pipeline

CHECK = {"name": "accuracy", "value": 0.912, "bound": "≥ 92.00%", "outcome": "reject"}
REASON = "test accuracy is 91.20%, below the bound of 92.00% (95 % interval 90.01% to 92.30%)"


def make_context(
    error: BaseException | None, task_id: str = "base_model.accuracy_gate", dag_id: str = DAG_ID, **fields: Any
) -> dict[str, Any]:
    task = SimpleNamespace(task_id=task_id, map_index=-1, try_number=1)
    vars(task).update(fields.pop("task_instance", {}))
    return {
        "run_id": "run-1",
        "dag": SimpleNamespace(dag_id=dag_id),
        "task_instance": task,
        "exception": error,
        **fields,
    }


def reject(
    pipeline: Pipeline, started: str = "2026-11-23T02:00:00+00:00", step: str = "accuracy_gate"
) -> RejectedError:
    result = {"checks": [CHECK | {"reason": REASON}, CHECK | {"outcome": "passed"}, CHECK | {"reason": "too large"}]}
    record = {"started": started, "parameters": {"seed": 3}, "status": "rejected", "outcome": "no", "result": result}
    write_record(pipeline.store, "run-1", step, record)
    return RejectedError("no")


def test_a_rejection_has_the_value_and_the_threshold_in_its_headline(pipeline: Pipeline) -> None:
    alerts.task_failed(make_context(reject(pipeline)))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"], alert["run_id"]) == ("rejected", DAG_ID, "run-1")
    assert alert["headline"] == "test accuracy 91.20%, below the threshold 92.00% (and 1 more)"
    assert alert["text"] == "Task base_model.accuracy_gate: no"


def test_a_task_that_was_cleared_and_fails_again_is_another_alert(pipeline: Pipeline) -> None:
    for started in ("2026-11-23T02:00:00+00:00", "2026-11-23T02:00:00+00:00", "2026-11-24T02:00:00+00:00"):
        alerts.task_failed(make_context(reject(pipeline, started)))
    assert len(read_alerts(pipeline.store)) == 2
    error = StoreError("the store does not answer")  # which leaves no record
    for number in (3, 3, 4):
        alerts.task_failed(make_context(error, task_instance={"try_number": number}))
    assert len(read_alerts(pipeline.store)) == 4


def test_each_of_several_mapped_tasks_has_its_own_record(pipeline: Pipeline) -> None:
    for index in (0, 1):
        error = reject(pipeline, f"2026-11-23T02:00:0{index}+00:00", f"train-{3 + index}")
        alerts.task_failed(make_context(error, "base_model.train", task_instance={"map_index": index}))
    assert len(read_alerts(pipeline.store)) == 2


@pytest.mark.parametrize(
    ("error", "event"),
    [(StoreError("it does not answer"), "run failed"), (None, "run failed"), (RejectedError("a gate"), "rejected")],
)
def test_a_failure_without_a_record_is_reported_all_the_same(
    pipeline: Pipeline, error: Exception | None, event: str
) -> None:
    alerts.task_failed(make_context(error))
    (alert,) = read_alerts(pipeline.store)
    assert alert["event"] == event
    assert str(error or "stopped without an exception") in alert["text"]


def test_wrong_use_of_another_dag_is_not_a_rejection(pipeline: Pipeline) -> None:
    alerts.task_failed(make_context(RejectedError("a rollback needs a reason"), "rollback", "fmnist_rollback"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"]) == ("run failed", "fmnist_rollback")


@pytest.mark.parametrize(
    ("inputs", "words"), [({"approval_reason": "drifted"}, "mia rejected it: drifted"), ({}, "no reason was given")]
)
def test_a_rejection_by_a_user_is_an_event_of_its_own(pipeline: Pipeline, inputs: dict[str, str], words: str) -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / "fmnist_retrain.py"))["fmnist_retrain"]()
    user = {"id": "7", "name": "mia"}
    response = {"chosen_options": ["Reject"], "params_input": inputs, "responded_at": datetime.now(UTC)}
    with pytest.raises(HITLRejectException) as rejected:
        dag.get_task("tuned_model.approval").execute_complete({}, response | {"responded_by_user": user})
    alerts.task_failed(make_context(rejected.value, "tuned_model.approval"))
    (alert,) = read_alerts(pipeline.store)
    assert alert["event"] == "rejected by a user"
    assert words in alert["text"]
    assert words in alert["headline"]


def test_an_approval_requires_a_reason() -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / "fmnist_rollback.py"))["fmnist_rollback"]()
    response = {"chosen_options": ["Approve"], "responded_at": datetime.now(UTC)}
    response |= {"responded_by_user": {"id": "7", "name": "mia"}}
    approval = dag.get_task("approval")
    for inputs in ({}, {"approval_reason": " "}):
        with pytest.raises(ValueError, match=r"mia approved without a reason; clear this task to be asked again"):
            approval.execute_complete({}, response | {"params_input": inputs})
    given = {"approval_reason": "I checked it"}
    assert approval.execute_complete({}, response | {"params_input": given})["params_input"] == given


@pytest.mark.parametrize(("dag_id", "task_id"), [(DAG_ID, "tuned_model.approval"), ("fmnist_rollback", "approval")])
def test_each_time_that_an_approval_is_asked_for_has_its_alert(pipeline: Pipeline, dag_id: str, task_id: str) -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / f"{dag_id}.py"))[dag_id]()
    (notifier,) = dag.get_task(task_id).notifiers
    asked = SimpleNamespace(subject="Promote it?", body="too large\n\n[Verdict](…)")
    for number in (1, 1, 2):  # the last one after the task was cleared
        instance = {"try_number": number}
        notifier.notify(make_context(None, task_id, dag_id, task=asked, task_instance=instance))
    found = read_alerts(pipeline.store)
    assert [(one["event"], one["task_id"], one["text"]) for one in found] == [
        ("approval needed", task_id, "Promote it? too large")
    ] * 2


def test_an_approval_that_nobody_answered_is_an_event_of_its_own(pipeline: Pipeline) -> None:
    alerts.task_failed(make_context(HITLTimeoutError({"error_type": "timeout"}), "approval", "fmnist_rollback"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"]) == ("approval expired", "fmnist_rollback")


def test_a_watch_that_fails_every_hour_is_reported_once_a_day(pipeline: Pipeline) -> None:
    for run_id in ("a", "b"):
        alerts.task_failed(make_context(StoreError("away"), "last_success", "fmnist_watch") | {"run_id": run_id})
    assert len(read_alerts(pipeline.store)) == 1


@pytest.mark.parametrize(("reason", "events"), [("timed_out", ["run failed"]), ("task_failure", [])])
def test_a_run_that_exceeds_its_time_is_reported_and_a_failed_task_speaks_for_itself(
    pipeline: Pipeline, reason: str, events: list[str]
) -> None:
    context = {"reason": reason, "run_id": "run-1", "dag": SimpleNamespace(dag_id=DAG_ID)}
    alerts.run_timed_out(context)
    alerts.run_timed_out(context)
    assert [alert["event"] for alert in read_alerts(pipeline.store)] == events


@pytest.mark.parametrize("dag_id", ["fmnist_rollback", ""])
def test_an_alert_names_the_dag_that_ran_if_one_did(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, dag_id: str
) -> None:
    for name in ("DAG_ID", "DAG_RUN_ID"):  # which Airflow sets for its tasks
        monkeypatch.delenv(f"AIRFLOW_CTX_{name}", raising=False)
        if dag_id:
            monkeypatch.setenv(f"AIRFLOW_CTX_{name}", dag_id if name == "DAG_ID" else "manual-1")
    alerts.send(Alert("champion changed", None, "v1 again"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["dag_id"], alert["run_id"]) == (dag_id, "manual-1" if dag_id else None)


@pytest.mark.integration
def test_a_gate_of_a_real_run_gives_its_check_as_headline(finished_pipeline: Pipeline) -> None:
    record = read_record(finished_pipeline.store, "run-1", "accuracy_gate")
    (accuracy, *_) = (row for row in record["result"]["checks"] if row["name"] == "accuracy")
    changed = {**accuracy, "outcome": "reject", "reason": accuracy["reason"].replace("at least", "below")}
    rejected = {**record, "status": "rejected", "outcome": "no", "result": {"checks": [changed]}}
    write_record(finished_pipeline.store, "run-1", "accuracy_gate", rejected)
    alerts.task_failed(make_context(RejectedError("no")))
    (alert,) = (one for one in read_alerts(finished_pipeline.store) if one["event"] == "rejected")
    assert f"{accuracy['value']:.2%}, below the threshold" in alert["headline"]
    assert service.in_service(finished_pipeline.store).version in alert["champion"]
