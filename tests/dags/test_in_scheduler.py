"""Runs on synthetic images in a real scheduler, and by commands of their own, that take minutes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID
from tests.support import synthetic
from tests.support.airflow_home import QUICK, UNSCHEDULED, AirflowInstallation, wait_until
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.exhaustive

HELD = {"approval": True, "policy": {"speed": {"bytes_at_most": 1}}}


def test_a_run_that_was_killed_is_followed_by_one_that_ends_well(migrated_home: Path, pipeline: Pipeline) -> None:
    airflow = AirflowInstallation(migrated_home, pipeline)
    process = airflow.start_program("airflow", "dags", "test", DAG_ID, "--conf", json.dumps(QUICK))
    assert process.stdout is not None
    seen = []
    for text in process.stdout:
        seen.append(text)
        if "train-0 begins" in text:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "".join(seen)
    assert champion.champion(pipeline.store) is None
    code, output = airflow.run_dag(candidates=2)
    assert code == 0, output
    assert "train-1 done" in output
    assert len(champion.history(pipeline.store)) == 1


def test_a_training_that_is_killed_in_a_scheduler_goes_on_from_its_checkpoint(
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
    assert "going on from" not in (task / "attempt=1.log").read_text()
    assert f"going on from checkpoints/{run_id}/base-0/" in (task / "attempt=2.log").read_text()
    assert len(champion.history(pipeline.store)) == 1


def test_unpausing_and_triggering_begins_the_run_that_was_asked_for_and_no_other(
    own_migrated_home: Path, finished_pipeline: Pipeline
) -> None:
    """As `make run-cluster` on a new cluster, and the box "Unpause on trigger" of the form."""
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
    assert [(found, kind, json.loads(conf)) for found, kind, conf in rows] == [(run_id, "manual", QUICK)]


def three_days_pass(airflow: AirflowInstallation, run_id: str) -> None:
    """Nobody answers until the time is over, which Airflow keeps with the task."""
    task = f"where task_id = 'tuned_model.approval' and run_id = '{run_id}'"
    ((begun, ends),) = airflow.query_database(f"select start_date, trigger_timeout from task_instance {task}")  # noqa: S608
    beyond = datetime.fromisoformat(ends) - datetime.fromisoformat(begun) - APPROVAL_LIMIT
    assert timedelta() <= beyond < timedelta(minutes=1)
    airflow.query_database(f"update task_instance set trigger_timeout = start_date {task}")  # noqa: S608


def test_a_held_candidate_waits_for_a_person_in_a_scheduler(
    own_migrated_home: Path, finished_pipeline: Pipeline
) -> None:
    store = finished_pipeline.store
    store.put("inbox/batch.npz", synthetic.encode_npz(images=synthetic.make_images(3, 5)[0]))
    inbox = {"FMNIST_PREDICT_PREFIX": "inbox/"}
    airflow = AirflowInstallation(own_migrated_home, finished_pipeline, inbox)
    with airflow.run_standalone() as url:
        airflow.unpause_dag(DAG_ID)
        airflow.unpause_dag("fmnist_predict")
        answers = ("refused", "Reject", "failed"), ("late", "", "failed"), ("approved", "Approve", "success")
        for seed, (run_id, option, ends) in enumerate(answers, start=1):
            airflow.open_api(url).trigger_run(DAG_ID, QUICK | HELD | {"seed": seed}, run_id)
            wait_until(lambda run_id=run_id: airflow.is_waiting_for_approval(run_id))
            assert airflow.read_task_states(run_id)["publish"] is None
            assert len(releases.versions(store)) == 1
            if option:
                airflow.decide_approval(url, run_id, option)
            else:
                three_days_pass(airflow, run_id)
            wait_until(lambda run_id=run_id: airflow.read_run_state(run_id) in {"success", "failed"})
            assert airflow.read_run_state(run_id) == ends
        code, output = airflow("airflow", "dags", "pause", DAG_ID)
        assert code == 0, output
    # A new champion answers what lies in the inbox, as soon as a scheduler begins runs by assets.
    scheduled = dict.fromkeys(UNSCHEDULED, "True")
    with AirflowInstallation(own_migrated_home, finished_pipeline, inbox | scheduled).run_standalone():
        (stat,) = wait_until(lambda: [one for one in store.list("predictions/") if one.key.endswith("summary.json")])
    summary = read_document(store, stat.key)
    assert (summary["release"], summary["images"]) == (service.in_service(store).version, 3)
    assert len(champion.history(store)) == 2
    manifest = service.open_release(store, service.in_service(store).version).manifest
    assert manifest["run_id"] == "approved"
    assert manifest["verdict"]["decision"] == "hold"
    assert {name: manifest["verdict"]["approval"][name] for name in ("by", "reason")} == {
        "by": "admin",
        "reason": "tests",
    }


def test_a_backfill_of_three_weeks_ends_with_one_champion_and_clear_refusals(
    own_migrated_home: Path, pipeline: Pipeline
) -> None:
    """All three runs find the same data, and may run at once: Airflow ignores a DAG's `max_active_runs` here."""
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
                found
                if len(found := dict(airflow.query_database(states))) == 3
                and set(found.values()) <= {"success", "failed"}
                else None
            ),
            seconds=1800,
        )
    history = champion.history(pipeline.store)
    assert len(history) >= 1
    promoted = {entry.write_id for entry in history}
    for run_id, state in rows.items():
        records = read_records(pipeline.store, run_id)
        if run_id in promoted:
            assert (state, records["promote"]["status"]) == ("success", "done")
        elif state == "success":
            assert "nothing changed" in records["detect_change"]["outcome"]
        else:
            (failed,) = (record for record in records.values() if record["status"] == "failed")
            assert "the champion has changed since" in failed["outcome"]
    assert len({releases.read_manifest(pipeline.store, entry.version)["model_sha256"] for entry in history}) == 1


@pytest.fixture
def own_minio_server(
    minio_server: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MinioServer]:
    """A server that a test may stop and start; where there can be none, `server` says so."""
    own = MinioServer(tmp_path / "minio")
    own.start()
    for name, value in own.credentials.items():
        monkeypatch.setenv(name, value)
    yield own
    own.stop()


def test_a_server_that_is_gone_ends_the_run_red_and_cleared_tasks_finish_it(
    own_migrated_home: Path, finished_pipeline: Pipeline, own_minio_server: MinioServer
) -> None:
    store = own_minio_server.open_store("copied")
    for stat in finished_pipeline.store.list(""):
        store.put(stat.key, finished_pipeline.store.get(stat.key))
    before = champion.history(store)
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
        assert (
            f"{own_minio_server.endpoint} accepts no connection; see that the server runs, and clear the task"
            in log.read_text()
        )

        own_minio_server.start()
        assert champion.history(store) == before
        code, output = airflow("airflow", "tasks", "clear", DAG_ID, "--yes", "--only-failed")
        assert code == 0, output
        wait_until(lambda: airflow.read_run_state(run_id) == "success")
    assert [entry.write_id for entry in champion.history(store)] == [before[0].write_id, run_id]
    service.open_release(store, service.in_service(store).version)
