"""Runs on synthetic images, in a real scheduler or in a separate process. They take minutes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.runs import make_run_key, read_records
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID
from tests.support import synthetic
from tests.support.airflow_home import QUICK, UNSCHEDULED, AirflowInstallation, wait_until
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.exhaustive

HOLD_CONF = {"approval": True, "policy": {"serving": {"max_bytes": 1}}}


def test_after_a_killed_run_the_next_one_succeeds(migrated_home: Path, pipeline: Pipeline) -> None:
    airflow = AirflowInstallation(migrated_home, pipeline)
    process = airflow.start_program("airflow", "dags", "test", DAG_ID, "--conf", json.dumps(QUICK))
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "train-0 begins" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "".join(lines)
    assert champion.find_champion(pipeline.store) is None
    code, output = airflow.run_dag(candidates=2)
    assert code == 0, output
    assert re.search(r"train-1 +done", output)
    assert len(champion.list_entries(pipeline.store)) == 1


def test_a_training_killed_in_a_scheduler_resumes_from_its_checkpoint(
    own_migrated_home: Path, pipeline: Pipeline
) -> None:
    airflow = AirflowInstallation(own_migrated_home, pipeline)
    with airflow.run_standalone() as url:
        airflow.unpause_dag(DAG_ID)
        run_id = airflow.open_api(url).trigger_run(DAG_ID, QUICK)
        wait_until(lambda: list(pipeline.store.list(f"checkpoints/{run_id}/base-0/")))
        ((process,),) = airflow.query_database(
            f"select pid from task_instance where task_id = 'base_model.train' and run_id = '{run_id}'"  # noqa: S608
        )
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: airflow.read_run_state(run_id) in {"success", "failed"})
        assert airflow.read_run_state(run_id) == "success"
    task = airflow.home / f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=base_model.train/map_index=0"
    assert "resuming from" not in (task / "attempt=1.log").read_text()
    assert f"resuming from checkpoints/{run_id}/base-0/" in (task / "attempt=2.log").read_text()
    assert len(champion.list_entries(pipeline.store)) == 1


def test_unpausing_and_triggering_starts_only_the_requested_run(
    own_migrated_home: Path, finished_pipeline: Pipeline
) -> None:
    """`make run-cluster` does this on a new cluster, and so does "Unpause on trigger" in the form."""
    scheduled = dict.fromkeys(UNSCHEDULED, "True")
    airflow = AirflowInstallation(own_migrated_home, finished_pipeline, scheduled)
    with airflow.run_standalone() as url:
        api = airflow.open_api(url)
        api.wait_for_dag(DAG_ID)
        run_id = api.trigger_run(DAG_ID, QUICK)
        api.unpause_dag(DAG_ID)
        wait_until(lambda: airflow.read_run_state(run_id) in {"success", "failed"})
        assert airflow.read_run_state(run_id) == "success"  # nothing changed since the champion
    rows = airflow.query_database(f"select run_id, run_type, conf from dag_run where dag_id = '{DAG_ID}'")  # noqa: S608
    assert [(created, kind, json.loads(conf)) for created, kind, conf in rows] == [(run_id, "manual", QUICK)]


def expire_approval(airflow: AirflowInstallation, run_id: str) -> None:
    """Let the approval expire by changing its deadline in Airflow's database."""
    task = f"where task_id = 'tuned_model.approval' and run_id = '{run_id}'"
    ((start, deadline),) = airflow.query_database(f"select start_date, trigger_timeout from task_instance {task}")  # noqa: S608
    excess = datetime.fromisoformat(deadline) - datetime.fromisoformat(start) - APPROVAL_LIMIT
    assert timedelta() <= excess < timedelta(minutes=1)
    airflow.query_database(f"update task_instance set trigger_timeout = start_date {task}")  # noqa: S608


def test_a_candidate_on_hold_waits_for_approval_in_a_scheduler(
    own_migrated_home: Path, finished_pipeline: Pipeline
) -> None:
    store = finished_pipeline.store
    store.put("inbox/batch.npz", synthetic.encode_npz(images=synthetic.make_images(3, 5)[0]))
    inbox = {"FMNIST_PREDICT_PREFIX": "inbox/"}
    airflow = AirflowInstallation(own_migrated_home, finished_pipeline, inbox)
    with airflow.run_standalone() as url:
        airflow.unpause_dag(DAG_ID)
        airflow.unpause_dag("fmnist_predict")
        responses = ("rejected", "Reject", "failed"), ("late", "", "failed"), ("approved", "Approve", "success")
        for seed, (run_id, option, state) in enumerate(responses, start=1):
            airflow.open_api(url).trigger_run(DAG_ID, QUICK | HOLD_CONF | {"seed": seed}, run_id)
            wait_until(lambda run_id=run_id: airflow.is_waiting_for_approval(run_id))
            assert airflow.read_task_states(run_id)["publish"] is None
            assert len(releases.list_versions(store)) == 1
            if option:
                airflow.decide_approval(url, run_id, option)
            else:
                expire_approval(airflow, run_id)
            wait_until(lambda run_id=run_id: airflow.read_run_state(run_id) in {"success", "failed"})
            assert airflow.read_run_state(run_id) == state
            (report,) = wait_until(lambda run_id=run_id: list(store.list(make_run_key(run_id, "report.html"))))
            assert b"on hold" in store.get(report.key)
        code, output = airflow("airflow", "dags", "pause", DAG_ID)
        assert code == 0, output
    # The new champion classifies the images in the inbox as soon as a scheduler starts runs for asset events.
    scheduled = dict.fromkeys(UNSCHEDULED, "True")
    with AirflowInstallation(own_migrated_home, finished_pipeline, inbox | scheduled).run_standalone():
        (stat,) = wait_until(lambda: [stat for stat in store.list("predictions/") if stat.key.endswith("summary.json")])
    summary = read_document(store, stat.key)
    assert (summary["release"], summary["images"]) == (require_champion(store).version, 3)
    assert len(champion.list_entries(store)) == 2
    manifest = open_release(store, require_champion(store).version).manifest
    approval = manifest.verdict.approval
    assert approval
    assert (manifest.run_id, manifest.verdict.decision) == ("approved", "hold")
    assert (approval.by, approval.reason) == ("admin", "tests")


def test_a_backfill_of_three_weeks_ends_with_one_champion_and_clear_refusals(
    own_migrated_home: Path, pipeline: Pipeline
) -> None:
    """All three runs use the same data and may run at once: a backfill ignores the DAG's `max_active_runs`."""
    airflow = AirflowInstallation(own_migrated_home, pipeline)
    with airflow.run_standalone() as url:
        airflow.open_api(url).wait_for_dag(DAG_ID)
        airflow.unpause_dag(DAG_ID)
        weeks = ("--from-date", "2026-10-05", "--to-date", "2026-10-20", "--dag-run-conf", json.dumps(QUICK))
        code, output = airflow("airflow", "backfill", "create", "--dag-id", DAG_ID, *weeks)
        assert code == 0, output
        states = f"select run_id, state from dag_run where dag_id = '{DAG_ID}'"  # noqa: S608
        rows = wait_until(
            lambda: (
                runs
                if len(runs := dict(airflow.query_database(states))) == 3
                and set(runs.values()) <= {"success", "failed"}
                else None
            ),
            seconds=1800,
        )
    history = champion.list_entries(pipeline.store)
    assert len(history) >= 1
    promoted = {entry.write_id for entry in history}
    for run_id, state in rows.items():
        records = read_records(pipeline.store, run_id)
        if run_id in promoted:
            assert (state, records["promote"].status) == ("success", "done")
        elif state == "success":
            assert "nothing changed" in records["detect_change"].outcome
        else:
            (failed,) = (record for record in records.values() if record.status == "failed")
            assert "the champion has changed in the meantime" in failed.outcome
    assert len({releases.read_manifest(pipeline.store, entry.version).model_sha256 for entry in history}) == 1


@pytest.fixture
def own_minio_server(
    minio_server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MinioServer]:
    """A server that a test may stop and start. `minio_server` skips the test on a machine without a server."""
    server = MinioServer(tmp_path / "minio")
    server.start()
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def test_a_lost_server_fails_the_run_and_cleared_tasks_complete_it(
    own_migrated_home: Path, finished_pipeline: Pipeline, own_minio_server: MinioServer
) -> None:
    store = own_minio_server.open_store("copied")
    for stat in finished_pipeline.store.list(""):
        store.put(stat.key, finished_pipeline.store.get(stat.key))
    before = champion.list_entries(store)
    airflow = AirflowInstallation(
        own_migrated_home, finished_pipeline, {"FMNIST_STORE": own_minio_server.build_uri("copied")}
    )
    with airflow.run_standalone() as url:
        airflow.unpause_dag(DAG_ID)
        run_id = airflow.open_api(url).trigger_run(DAG_ID, QUICK | {"seed": 1})
        wait_until(lambda: airflow.read_task_states(run_id).get("promotion_gate") == "success", every=0.05)
        own_minio_server.stop()
        wait_until(lambda: airflow.read_run_state(run_id) == "failed")
        assert airflow.read_task_states(run_id)["publish"] == "failed"
        (log,) = airflow.home.glob(f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=release.publish/attempt=3.log")
        reason = "does not accept connections; check that the server is running, then clear the task"
        assert f"{own_minio_server.endpoint} {reason}" in log.read_text()

        own_minio_server.start()
        assert champion.list_entries(store) == before
        code, output = airflow("airflow", "tasks", "clear", DAG_ID, "--yes", "--only-failed")
        assert code == 0, output
        wait_until(lambda: airflow.read_run_state(run_id) == "success")
    assert [entry.write_id for entry in champion.list_entries(store)] == [before[0].write_id, run_id]
    open_release(store, require_champion(store).version)
