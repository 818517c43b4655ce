"""What the graph does with its steps: `airflow dags test`, on synthetic images, with recorded results of training."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from fmnist_tasks import service
from fmnist_tasks.cli import app
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import DAG_ID
from tests.support.airflow_in_process import AirflowInProcess
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

QUICK = {"profile": "quick"}
HELD = {"approval": True, "policy": {"speed": {"bytes_at_most": 1}}}


def test_a_run_that_passes_emits_the_champion_and_a_task_can_be_run_alone(
    airflow: AirflowInProcess, replaying_pipeline: Pipeline
) -> None:
    code, output = airflow.test_dag(**QUICK, candidates=2)
    assert code == 0, output
    assert "train-0 done" in output
    assert "train-1 done" in output
    entry = service.in_service(replaying_pipeline.store)
    assert re.search(rf"promote done .*{entry.version} is the champion, number 1", output)
    (extra,) = airflow.query_database("select extra from asset_event order by id")[-1]
    assert json.loads(extra)["version"] == entry.version
    assert json.loads(extra)["accuracy"] > 0.92

    run_id = service.open_release(replaying_pipeline.store, entry.version).manifest["run_id"]
    rows = airflow.query_database(f"select key, value from xcom where run_id = '{run_id}'")  # noqa: S608
    assert len(rows) == 18  # one for each task that ran, `train` twice, and the three links
    links = sorted(json.loads(value) for key, value in rows if key.startswith("_link_"))
    assert [link.partition("/fmnist/")[2].split("/")[0] for link in links] == ["releases", "runs", "runs"]
    assert links[0].endswith(f"/releases/{entry.version}")
    code, output = airflow("tasks", "test", DAG_ID, "base_model.accuracy_gate", run_id)
    assert code == 0, output
    assert "accuracy_gate done" in output
    assert len(champion.history(replaying_pipeline.store)) == 1


def test_nothing_changed_ends_green_without_training(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    before = champion.history(finished_pipeline.store)
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    assert "nothing changed: data, code and parameters are those of the champion" in output
    assert "train-0 begins" not in output
    assert champion.history(finished_pipeline.store) == before


def test_an_unknown_key_of_a_conf_is_ignored_and_reported_and_a_wrong_value_rejected(
    airflow: AirflowInProcess, finished_pipeline: Pipeline
) -> None:
    code, output = airflow.test_dag(**QUICK, triggered_by="another DAG")
    assert code == 0, output
    assert "ignored in this run's conf, since fmnist_retrain has no such parameter: ['triggered_by']" in output
    (run_id,) = {stat.key.split("/")[1] for stat in finished_pipeline.store.list("runs/")} - {RUN.id}
    report = finished_pipeline.store.get(f"runs/{run_id}/report.html").decode()
    assert "Ignored, since there are no such parameters: triggered_by." in report
    ended = CliRunner().invoke(app, ["summary", "--run", run_id])
    assert re.search(r"ignored, no such parameter +triggered_by *\n", ended.output)

    from airflow.sdk.exceptions import ParamValidationError

    before = [stat.key for stat in finished_pipeline.store.list("runs/")]
    with pytest.raises(ParamValidationError, match=r"Invalid input for param seed: 1\.0 is not of type"):
        airflow.test_dag(seed=1.0)
    assert [stat.key for stat in finished_pipeline.store.list("runs/")] == before


def test_a_weak_model_ends_red_with_an_alert_and_the_champion_stays(
    airflow: AirflowInProcess, finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = json.loads(finished_pipeline.store.get("runs/run-1/evaluate_base.json"))["result"]["test"]
    replay_steps(monkeypatch, finished_pipeline.store, {"evaluate_base": {"test": {**recorded, "accuracy": 0.995}}})
    before = champion.history(finished_pipeline.store)
    code, output = airflow.test_dag(**QUICK, accuracy_threshold=0.999)
    assert code == 1, output
    assert re.search(
        r"ALERT rejected in fmnist_retrain, run \S+: Task base_model.accuracy_gate: base model rejected", output
    )
    assert "test accuracy is 99.50%, below the bound of 99.90%" in output
    assert f"Current champion: {before[-1].version}" in output
    assert output.count("ALERT") == 1
    assert "fine_tune begins" not in output
    assert champion.history(finished_pipeline.store) == before
    assert len(releases.versions(finished_pipeline.store)) == 1


def test_bad_data_ends_red_without_a_second_try(airflow: AirflowInProcess, pipeline: Pipeline) -> None:
    (pipeline.data / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    code, output = airflow.test_dag(**QUICK)
    assert code == 1, output
    assert output.count("ingest begins") == 1
    assert "trying again cannot help" in output
    assert re.search(r"ALERT run failed .*Task data.ingest: .*no source has its four files intact", output)
    assert "There is no champion yet" in output


def test_a_store_that_does_not_answer_is_tried_again(airflow: AirflowInProcess, pipeline: Pipeline) -> None:
    (pipeline.home / "store").write_text("no folder")
    code, output = airflow.test_dag(**QUICK)
    assert code == 1, output
    assert output.count("ingest begins") == 3
    assert output.count("ALERT") == 1
    assert "Not a directory; free space" in output


def test_a_run_without_a_scheduler_never_waits(airflow: AirflowInProcess, replaying_pipeline: Pipeline) -> None:
    code, output = airflow.test_dag(**QUICK, **HELD)
    assert code == 1, output
    assert "candidate rejected: the size in bytes is" in output
    assert champion.champion(replaying_pipeline.store) is None


def test_the_command_line_knows_the_dag(airflow: AirflowInProcess) -> None:
    code, output = airflow("dags", "reserialize")
    assert code == 0, output
    code, output = airflow("dags", "list", "--output", "json")
    assert DAG_ID in output
    code, output = airflow("dags", "list-import-errors", "--output", "plain")
    assert "No data found" in output


def test_a_store_in_a_connection_of_airflow_serves_and_its_secret_is_shown_nowhere(
    airflow: AirflowInProcess,
    replaying_pipeline: Pipeline,
    minio_server: MinioServer,
    minio_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    minio_store.put("incoming/bad.npz", b"no batch")  # the bucket is an administrator's to make
    for stat in replaying_pipeline.store.list("blobs/"):
        minio_store.put(stat.key, replaying_pipeline.store.get(stat.key))
    user = minio_server.create_user("publisher", minio_store.bucket)
    for name in user:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FMNIST_STORE", f"s3://{minio_store.bucket}?connection=fmnist_store")
    login, secret = user.values()
    extra = json.dumps({"endpoint_url": minio_server.endpoint})
    named = ["--conn-type", "generic", "--conn-login", login, "--conn-password", secret, "--conn-extra", extra]
    code, output = airflow("connections", "add", "fmnist_store", *named)
    assert code == 0, output
    try:
        code, output = airflow.test_dag(**QUICK)
        assert code == 0, output
        entry = service.in_service(minio_store)
        assert "quarantined" in output
        assert len(releases.read_files(minio_store, releases.read_manifest(minio_store, entry.version))) >= 8
        assert list(replaying_pipeline.store.list("runs/")) == []
        logs = [path.read_bytes() for path in airflow.home.rglob("*.log")]
        told = b"\n".join([output.encode(), *logs, *(minio_store.get(stat.key) for stat in minio_store.list(""))])
        assert secret.encode() not in told
        assert b"AWS4-HMAC-SHA256" not in told

        code, output = airflow.test_dag(**QUICK)
        assert code == 0, output
        assert "nothing changed" in output
    finally:
        airflow("connections", "delete", "fmnist_store")


def test_wrong_credentials_end_red_at_once_and_show_nothing(
    airflow: AirflowInProcess,
    pipeline: Pipeline,
    minio_server: MinioServer,
    minio_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINIO_ACCESS_KEY", "nobody")
    monkeypatch.setenv("MINIO_SECRET_KEY", "s3cr3t-enough")
    code, output = airflow.test_dag(**QUICK)
    assert code == 1, output
    assert output.count("ingest begins") == 1
    assert "does not accept these credentials (InvalidAccessKeyId" in output
    assert "The current champion cannot be read" in output
    assert "s3cr3t-enough" not in output + "".join(path.read_text() for path in airflow.home.rglob("*.log"))
