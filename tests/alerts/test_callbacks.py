"""The alerts of Airflow's failure callbacks: their event, their headline, and when they are separate alerts."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.exceptions import HITLRejectException, HITLTimeoutError

from fmnist_tasks import alerts
from fmnist_tasks.alerts import Alert
from fmnist_tasks.alerts.watch import check_pipeline
from fmnist_tasks.errors import RejectedError, StoreError, TrainingError
from fmnist_tasks.evaluation import model_checks
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.schemas.evaluation import ChampionComparison, Check, Identity
from fmnist_tasks.schemas.runs import GateResult, ValidationResult
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.settings import DAG_ID, PROJECT, Parameters
from tests.support.documents import make_comparison, make_dataset, save_record
from tests.support.outbox import read_alerts
from tests.support.pipeline import Pipeline

MESSAGE = "test accuracy is 91.20%, below the threshold of 92.00% (95% confidence interval 90.01% to 92.30%)"
CHECK = Check(name="accuracy", value=0.912, threshold="≥ 92.00%", outcome="reject", message=MESSAGE)
IDENTITY = Identity(run_id="run-1", model_sha256="a" * 64, data_fingerprint="b" * 64, code_digest="c" * 64)
STARTED = "2026-11-23T02:00:00+00:00"


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


def save_rejection(pipeline: Pipeline, started: str = STARTED, message: str = MESSAGE) -> RejectedError:
    """Save a rejection by the accuracy gate, whose first and last check failed; return the error that it raises."""
    changes: list[dict[str, str]] = [{"message": message}, {"outcome": "passed"}, {"message": "too large"}]
    checks = [CHECK.model_copy(update=change) for change in changes]
    result = GateResult(summary="no", rejection="no", decision="reject", checks=checks, **dict(IDENTITY))
    fields = {"started": started, "status": "rejected", "outcome": "no", "result": result.to_json()}
    save_record(pipeline.store, "run-1", "accuracy_gate", **fields)
    return RejectedError("no")


@pytest.mark.parametrize(
    ("comparison", "headline"),
    [
        (
            make_comparison(161, 188, candidate=0.9454, champion=0.9483),
            (
                "validation accuracy 94.54%, below the champion's 94.83%, and the test images show no significant "
                "difference, p = 0.164"
            ),
        ),
        (make_comparison(161, 288), "the candidate is significantly worse than the champion, p < 0.001"),
    ],
)
def test_a_comparison_with_the_champion_fits_into_a_headline(
    pipeline: Pipeline, comparison: ChampionComparison, headline: str
) -> None:
    message = model_checks.check_against_champion(read_policy({}).champion, comparison).message
    assert "161" in message
    alerts.alert_task_failure(make_context(save_rejection(pipeline, message=message)))
    (alert,) = read_alerts(pipeline.store)
    assert alert["headline"] == f"{headline} (and 1 more)"


def test_a_rejection_has_the_value_and_the_threshold_in_its_headline(pipeline: Pipeline) -> None:
    alerts.alert_task_failure(make_context(save_rejection(pipeline)))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"], alert["run_id"]) == ("rejected", DAG_ID, "run-1")
    assert alert["headline"] == "test accuracy 91.20%, below the threshold of 92.00% (and 1 more)"
    assert alert["text"] == "Task base_model.accuracy_gate: no"


def test_a_cleared_task_that_fails_again_sends_another_alert(pipeline: Pipeline) -> None:
    for started in (STARTED, STARTED, "2026-11-24T02:00:00+00:00"):
        alerts.alert_task_failure(make_context(save_rejection(pipeline, started)))
    assert len(read_alerts(pipeline.store)) == 2
    error = StoreError("no response from the store")  # then there is no record
    for number in (3, 3, 4):
        alerts.alert_task_failure(make_context(error, task_instance={"try_number": number}))
    assert len(read_alerts(pipeline.store)) == 4


def test_mapped_tasks_send_separate_alerts(pipeline: Pipeline) -> None:
    for index in (0, 1):
        started = f"2026-11-23T02:00:0{index}+00:00"
        fields = {"started": started, "parameters": Parameters(seed=3).to_json(), "status": "failed", "outcome": "no"}
        save_record(pipeline.store, "run-1", f"train-{3 + index}", **fields)
    for index in (0, 0, 1):  # the first one again, in another attempt: the record identifies it
        task = {"map_index": index, "try_number": 1 + len(read_alerts(pipeline.store))}
        alerts.alert_task_failure(make_context(TrainingError("no"), "base_model.train", task_instance=task))
    assert len(read_alerts(pipeline.store)) == 2


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("accuracy_gate", None),
        ("accuracy_gate", {"checks": "none"}),
        ("accuracy_gate", {"checks": [{"name": "accuracy"}]}),
        ("another_gate", {"checks": []}),
    ],
)
def test_a_rejection_with_unreadable_checks_is_reported_without_them(
    pipeline: Pipeline, step: str, result: dict[str, object] | None
) -> None:
    save_record(pipeline.store, "run-1", step, status="rejected", outcome="no", result=result)
    alerts.alert_task_failure(make_context(RejectedError("no"), f"base_model.{step}"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["headline"]) == ("rejected", "")
    assert alert["text"] == f"Task base_model.{step}: no"
    check_pipeline()  # finds the same alert, and continues with the next record
    assert len(read_alerts(pipeline.store)) == 1


@pytest.mark.parametrize("outcome", ["reject", "hold"])
def test_the_headline_of_a_rejected_dataset_is_its_failed_check(pipeline: Pipeline, outcome: str) -> None:
    passed = CHECK.model_copy(update={"outcome": "passed"})
    failed = CHECK.model_copy(
        update={"message": "every image has 28 rows: failed for 1 of 1 rows, for example 27", "outcome": outcome}
    )
    result = ValidationResult(
        summary="no",
        rejection="no",
        dataset=make_dataset(),
        checks={"training": [passed], "test": [passed, failed]},
        drift={"training": None, "test": None},
        accepted=[],
        quarantined=[],
        waiting=[],
        data_docs="there",
    )
    fields = {"status": "rejected", "outcome": "no", "result": result.to_json()}
    save_record(pipeline.store, "run-1", "validate_data", **fields)
    alerts.alert_task_failure(make_context(RejectedError("no"), "data.validate_data"))
    (alert,) = read_alerts(pipeline.store)
    assert alert["headline"] == failed.message


@pytest.mark.parametrize(
    ("error", "event"),
    [(StoreError("no response"), "run failed"), (None, "run failed"), (RejectedError("a gate"), "rejected")],
)
def test_a_failure_without_a_record_is_reported(pipeline: Pipeline, error: Exception | None, event: str) -> None:
    alerts.alert_task_failure(make_context(error))
    (alert,) = read_alerts(pipeline.store)
    assert alert["event"] == event
    assert str(error or "stopped without an exception") in alert["text"]


def test_wrong_use_of_another_dag_is_not_a_rejection(pipeline: Pipeline) -> None:
    alerts.alert_task_failure(make_context(RejectedError("a rollback needs a reason"), "rollback", "fmnist_rollback"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"]) == ("run failed", "fmnist_rollback")


@pytest.mark.parametrize(
    ("inputs", "words"), [({"approval_reason": "drifted"}, "mia rejected it: drifted"), ({}, "no reason given")]
)
def test_a_rejection_by_a_user_is_a_separate_event(pipeline: Pipeline, inputs: dict[str, str], words: str) -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / "fmnist_retrain.py"))["fmnist_retrain"]()
    user = {"id": "7", "name": "mia"}
    response = {"chosen_options": ["Reject"], "params_input": inputs, "responded_at": datetime.now(UTC)}
    with pytest.raises(HITLRejectException) as rejected:
        dag.get_task("tuned_model.approval").execute_complete({}, response | {"responded_by_user": user})
    alerts.alert_task_failure(make_context(rejected.value, "tuned_model.approval"))
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
        with pytest.raises(ValueError, match=r"mia approved without a reason; clear this task to request"):
            approval.execute_complete({}, response | {"params_input": inputs})
    inputs = {"approval_reason": "I checked it"}
    assert approval.execute_complete({}, response | {"params_input": inputs})["params_input"] == inputs


@pytest.mark.parametrize(("dag_id", "task_id"), [(DAG_ID, "tuned_model.approval"), ("fmnist_rollback", "approval")])
def test_each_request_for_approval_sends_an_alert(pipeline: Pipeline, dag_id: str, task_id: str) -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / f"{dag_id}.py"))[dag_id]()
    (notifier,) = dag.get_task(task_id).notifiers
    operator = SimpleNamespace(subject="Promote it?", body="too large\n\n[Verdict](…)")
    for number in (1, 1, 2):  # the last one after the task was cleared
        instance = {"try_number": number}
        notifier.notify(make_context(None, task_id, dag_id, task=operator, task_instance=instance))
    sent = [(alert["event"], alert["task_id"], alert["text"]) for alert in read_alerts(pipeline.store)]
    assert sent == [("approval needed", task_id, "Promote it? too large")] * 2


def test_an_expired_approval_is_a_separate_event(pipeline: Pipeline) -> None:
    alerts.alert_task_failure(make_context(HITLTimeoutError({"error_type": "timeout"}), "approval", "fmnist_rollback"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["event"], alert["dag_id"]) == ("approval expired", "fmnist_rollback")


def test_a_watch_that_fails_every_hour_is_reported_once_a_day(pipeline: Pipeline) -> None:
    for run_id in ("a", "b"):
        alerts.alert_task_failure(
            make_context(StoreError("no response"), "last_success", "fmnist_watch") | {"run_id": run_id}
        )
    assert len(read_alerts(pipeline.store)) == 1


@pytest.mark.parametrize(("reason", "events"), [("timed_out", ["run failed"]), ("task_failure", [])])
def test_the_callback_of_a_run_reports_only_an_exceeded_time_limit(
    pipeline: Pipeline, reason: str, events: list[str]
) -> None:
    context = {"reason": reason, "run_id": "run-1", "dag": SimpleNamespace(dag_id=DAG_ID)}
    alerts.alert_run_timeout(context)
    alerts.alert_run_timeout(context)
    assert [alert["event"] for alert in read_alerts(pipeline.store)] == events


@pytest.mark.parametrize("dag_id", ["fmnist_rollback", ""])
def test_an_alert_names_the_current_dag_if_any(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, dag_id: str
) -> None:
    for name in ("DAG_ID", "DAG_RUN_ID"):  # which Airflow sets for its tasks
        monkeypatch.delenv(f"AIRFLOW_CTX_{name}", raising=False)
        if dag_id:
            monkeypatch.setenv(f"AIRFLOW_CTX_{name}", dag_id if name == "DAG_ID" else "manual-1")
    alerts.send_alert(Alert("champion changed", None, "v1 is the champion again"))
    (alert,) = read_alerts(pipeline.store)
    assert (alert["dag_id"], alert["run_id"]) == (dag_id, "manual-1" if dag_id else None)


@pytest.mark.integration
def test_the_headline_of_a_real_rejection_is_its_failed_check(finished_pipeline: Pipeline) -> None:
    result: GateResult = finished_pipeline.read_result("accuracy_gate")
    (accuracy, *_) = (check for check in result.checks if check.name == "accuracy")
    assert isinstance(accuracy.value, float)
    changed = accuracy.model_copy(
        update={"outcome": "reject", "message": accuracy.message.replace("at least", "below")}
    )
    rejected = result.model_copy(update={"checks": [changed], "decision": "reject", "rejection": "no"})
    record = read_record(finished_pipeline.store, "run-1", "accuracy_gate")
    fields = {"status": "rejected", "outcome": "no", "result": rejected.to_json()}
    write_record(finished_pipeline.store, record.model_copy(update=fields))
    alerts.alert_task_failure(make_context(RejectedError("no")))
    (alert,) = (alert for alert in read_alerts(finished_pipeline.store) if alert["event"] == "rejected")
    assert f"{accuracy.value:.2%}, below the threshold of" in alert["headline"]
    assert require_champion(finished_pipeline.store).version in alert["champion"]
