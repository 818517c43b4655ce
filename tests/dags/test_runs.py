"""Runs of the DAG with `airflow dags test`, on synthetic images, with recorded training results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.schemas.data import ImageSet, IncomingFile, NewBatch
from fmnist_tasks.schemas.runs import AddedBatch
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.settings import DAG_ID
from tests.support.airflow_in_process import AirflowInProcess
from tests.support.documents import digest, make_reference
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

QUICK = {"profile": "quick"}
HOLD_CONF = {"approval": True, "policy": {"serving": {"max_bytes": 1}}}


def test_a_successful_run_emits_the_champion_and_a_task_can_run_alone(
    airflow: AirflowInProcess, replaying_pipeline: Pipeline
) -> None:
    code, output = airflow.test_dag(**QUICK, candidates=2)
    assert code == 0, output
    assert "train-0 done" in output
    assert "train-1 done" in output
    entry = require_champion(replaying_pipeline.store)
    assert re.search(rf"promote done .*{entry.version} is the champion \(log entry 1\)", output)
    (extra,) = airflow.query_database("select extra from asset_event order by id")[-1]
    assert json.loads(extra)["version"] == entry.version
    assert json.loads(extra)["accuracy"] > 0.92

    run_id = releases.read_manifest(replaying_pipeline.store, entry.version).run_id
    rows = airflow.query_database(f"select key, value from xcom where run_id = '{run_id}'")  # noqa: S608
    assert {key for key, _ in rows if not key.startswith("_link_")} == {"return_value", "skipmixin_key"}
    assert sum(len(value) for _, value in rows) < 2000
    links = sorted(json.loads(value) for key, value in rows if key.startswith("_link_"))
    assert [link.partition("/fmnist/")[2].split("/")[0] for link in links] == ["releases", "runs", "runs"]
    assert links[0].endswith(f"/releases/{entry.version}")
    code, output = airflow("tasks", "test", DAG_ID, "base_model.accuracy_gate", run_id)
    assert code == 0, output
    assert "accuracy_gate done" in output
    assert len(champion.list_entries(replaying_pipeline.store)) == 1


def make_batch(name: str) -> NewBatch:
    key, blob = f"incoming/{name}", make_reference(name)
    file = IncomingFile(key=key, version="1", bytes=9, modified="2026-11-23T01:00:00+00:00", sha256=digest(name))
    return NewBatch(name=name, files=[file], image_set=ImageSet(split="train", source=key, images=2, blob=blob))


def test_xcom_does_not_grow_with_the_number_of_batches(
    airflow: AirflowInProcess, replaying_pipeline: Pipeline, finished_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [make_batch(f"week {number}.npz") for number in range(1000)]
    accepted = [AddedBatch(name=batch.name, files=batch.files) for batch in batches]
    changes = {
        "ingest": {"batches": [batch.to_json() for batch in batches]},
        "validate_data": {"accepted": [batch.to_json() for batch in accepted]},
    }
    replay_steps(monkeypatch, Pipeline(finished_home).store, changes, names=("ingest", "validate_data"))
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    run_id = require_champion(replaying_pipeline.store).write_id
    for step in ("ingest", "validate_data"):
        assert len(replaying_pipeline.store.get(f"runs/{run_id}/{step}.json")) > 50_000
    ((xcom_bytes,),) = airflow.query_database(
        f"select sum(length(value)) from xcom where run_id = '{run_id}'"  # noqa: S608
    )
    assert xcom_bytes < 2000


def test_nothing_changed_ends_green_without_training(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    before = champion.list_entries(finished_pipeline.store)
    code, output = airflow.test_dag(**QUICK)
    assert code == 0, output
    assert "nothing changed: data, code and parameters are those of the champion" in output
    assert "train-0 begins" not in output
    assert champion.list_entries(finished_pipeline.store) == before


def test_an_unknown_key_of_a_conf_is_ignored_and_reported_and_a_wrong_value_rejected(
    airflow: AirflowInProcess, finished_pipeline: Pipeline
) -> None:
    code, output = airflow.test_dag(**QUICK, triggered_by="another DAG")
    assert code == 0, output
    assert "ignoring keys of this run's conf that are not parameters of fmnist_retrain: ['triggered_by']" in output
    (run_id,) = {stat.key.split("/")[1] for stat in finished_pipeline.store.list("runs/")} - {RUN.id}
    report = finished_pipeline.store.get(f"runs/{run_id}/report.html").decode()
    assert "Ignored, since there are no such parameters: triggered_by." in report
    result = CliRunner().invoke(app, ["summary", "--run", run_id])
    assert re.search(r"ignored unknown parameters +triggered_by *\n", result.output)

    from airflow.sdk.exceptions import ParamValidationError

    before = [stat.key for stat in finished_pipeline.store.list("runs/")]
    with pytest.raises(ParamValidationError, match=r"Invalid input for param seed: 1\.0 is not of type"):
        airflow.test_dag(seed=1.0)
    assert [stat.key for stat in finished_pipeline.store.list("runs/")] == before


def test_a_weak_model_fails_the_run_with_an_alert_and_the_champion_stays(
    airflow: AirflowInProcess, finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = finished_pipeline.read_result("evaluate_base").to_json()["test"]
    replay_steps(monkeypatch, finished_pipeline.store, {"evaluate_base": {"test": test | {"accuracy": 0.995}}})
    before = champion.list_entries(finished_pipeline.store)
    code, output = airflow.test_dag(**QUICK, accuracy_threshold=0.999)
    assert code == 1, output
    assert re.search(
        r"ALERT rejected in fmnist_retrain, run \S+: Task base_model.accuracy_gate: base model rejected", output
    )
    assert "test accuracy is 99.50%, below the threshold of 99.90%" in output
    assert f"Current champion: {before[-1].version}" in output
    assert output.count("ALERT") == 1
    assert "fine_tune begins" not in output
    assert champion.list_entries(finished_pipeline.store) == before
    assert len(releases.list_versions(finished_pipeline.store)) == 1


def test_bad_data_fails_the_run_without_a_retry(airflow: AirflowInProcess, pipeline: Pipeline) -> None:
    (pipeline.data / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    code, output = airflow.test_dag(**QUICK)
    assert code == 1, output
    assert output.count("ingest begins") == 1
    assert "not retryable" in output
    assert re.search(r"ALERT run failed .*Task data.ingest: .*no source has all four files intact", output)
    assert "There is no champion yet" in output


def test_a_store_that_does_not_respond_is_retried(airflow: AirflowInProcess, pipeline: Pipeline) -> None:
    (pipeline.home / "store").write_text("not a folder")
    code, output = airflow.test_dag(**QUICK)
    assert code == 1, output
    assert output.count("ingest begins") == 3
    assert output.count("ALERT") == 1
    assert "Not a directory; free space" in output


def test_a_run_without_a_scheduler_never_waits(airflow: AirflowInProcess, replaying_pipeline: Pipeline) -> None:
    code, output = airflow.test_dag(**QUICK, **HOLD_CONF)
    assert code == 1, output
    assert "candidate rejected, since size (bytes) is" in output
    assert champion.find_champion(replaying_pipeline.store) is None


def test_airflow_lists_the_dag_without_import_errors(airflow: AirflowInProcess) -> None:
    code, output = airflow("dags", "reserialize")
    assert code == 0, output
    code, output = airflow("dags", "list", "--output", "json")
    assert DAG_ID in output
    code, output = airflow("dags", "list-import-errors", "--output", "plain")
    assert "No data found" in output


def test_a_store_in_an_airflow_connection_works_and_its_secret_is_not_shown(
    airflow: AirflowInProcess,
    replaying_pipeline: Pipeline,
    minio_server: MinioServer,
    minio_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    minio_store.put("incoming/bad.npz", b"not a batch")  # as administrator, which creates the bucket
    for stat in replaying_pipeline.store.list("blobs/"):
        minio_store.put(stat.key, replaying_pipeline.store.get(stat.key))
    user = minio_server.create_user("publisher", minio_store.bucket)
    for name in user:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FMNIST_STORE", f"s3://{minio_store.bucket}?connection=fmnist_store")
    login, secret = user.values()
    extra = json.dumps({"endpoint_url": minio_server.endpoint})
    options = ["--conn-type", "generic", "--conn-login", login, "--conn-password", secret, "--conn-extra", extra]
    code, output = airflow("connections", "add", "fmnist_store", *options)
    assert code == 0, output
    try:
        code, output = airflow.test_dag(**QUICK)
        assert code == 0, output
        entry = require_champion(minio_store)
        assert "quarantined" in output
        assert len(releases.read_files(minio_store, releases.read_manifest(minio_store, entry.version))) >= 8
        assert list(replaying_pipeline.store.list("runs/")) == []
        logs = [path.read_bytes() for path in airflow.home.rglob("*.log")]
        content = b"\n".join([output.encode(), *logs, *(minio_store.get(stat.key) for stat in minio_store.list(""))])
        assert secret.encode() not in content
        assert b"AWS4-HMAC-SHA256" not in content

        code, output = airflow.test_dag(**QUICK)
        assert code == 0, output
        assert "nothing changed" in output
    finally:
        airflow("connections", "delete", "fmnist_store")


def test_wrong_credentials_fail_the_run_at_once_and_are_not_shown(
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
