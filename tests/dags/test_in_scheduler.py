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
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID
from tests.support import synthetic
from tests.support.airflow_home import QUICK, Airflow, until
from tests.support.minio_server import Server
from tests.support.pipeline import Line

pytestmark = pytest.mark.exhaustive

HELD = {"approval": True, "policy": {"speed": {"bytes_at_most": 1}}}


def test_a_run_that_was_killed_is_followed_by_one_that_ends_well(migrated: Path, line: Line) -> None:
    airflow = Airflow(migrated, line)
    process = airflow.start("airflow", "dags", "test", DAG_ID, "--conf", json.dumps(QUICK))
    assert process.stdout is not None
    seen = []
    for text in process.stdout:
        seen.append(text)
        if "train-0 begins" in text:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL, "".join(seen)
    assert champion.champion(line.store) is None
    code, output = airflow.run(candidates=2)
    assert code == 0, output
    assert "train-1 done" in output
    assert len(champion.history(line.store)) == 1


def test_a_training_that_is_killed_in_a_scheduler_goes_on_from_its_checkpoint(own_migrated: Path, line: Line) -> None:
    airflow = Airflow(own_migrated, line)
    with airflow.standalone() as url:
        airflow.postpone_schedule()
        airflow.unpause(DAG_ID)
        run_id = airflow.api(url).trigger(DAG_ID, QUICK)
        until(lambda: list(line.store.list(f"checkpoints/{run_id}/base-0/")))
        ((process,),) = airflow.query(
            f"select pid from task_instance where task_id = 'base_model.train' and run_id = '{run_id}'"  # noqa: S608
        )
        os.kill(process, signal.SIGKILL)
        until(lambda: airflow.state(run_id) in {"success", "failed"})
        assert airflow.state(run_id) == "success"
    task = airflow.home / f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=base_model.train/map_index=0"
    assert "going on from" not in (task / "attempt=1.log").read_text()
    assert f"going on from checkpoints/{run_id}/base-0/" in (task / "attempt=2.log").read_text()
    assert len(champion.history(line.store)) == 1


def three_days_pass(airflow: Airflow, run_id: str) -> None:
    """Nobody answers until the time is over, which Airflow keeps with the task."""
    task = f"where task_id = 'tuned_model.approval' and run_id = '{run_id}'"
    ((begun, ends),) = airflow.query(f"select start_date, trigger_timeout from task_instance {task}")  # noqa: S608
    beyond = datetime.fromisoformat(ends) - datetime.fromisoformat(begun) - APPROVAL_LIMIT
    assert timedelta() <= beyond < timedelta(minutes=1)
    airflow.query(f"update task_instance set trigger_timeout = start_date {task}")  # noqa: S608


def test_a_held_candidate_waits_for_a_person_in_a_scheduler(own_migrated: Path, finished: Line) -> None:
    store = finished.store
    store.put("inbox/batch.npz", synthetic.npz(images=synthetic.images(3, 5)[0]))
    airflow = Airflow(own_migrated, finished, {"FMNIST_PREDICT_PREFIX": "inbox/"})
    with airflow.standalone() as url:
        airflow.postpone_schedule()
        airflow.unpause(DAG_ID)
        airflow.unpause("fmnist_predict")
        answers = ("refused", "Reject", "failed"), ("late", "", "failed"), ("approved", "Approve", "success")
        for seed, (run_id, option, ends) in enumerate(answers, start=1):
            airflow.api(url).trigger(DAG_ID, QUICK | HELD | {"seed": seed}, run_id)
            until(lambda run_id=run_id: airflow.asks(run_id))
            assert airflow.states(run_id)["publish"] is None
            assert len(releases.versions(store)) == 1
            if option:
                airflow.answer(url, run_id, option)
            else:
                three_days_pass(airflow, run_id)
            until(lambda run_id=run_id: airflow.state(run_id) in {"success", "failed"})
            assert airflow.state(run_id) == ends
        # A new champion answers what lies in the inbox.
        (stat,) = until(lambda: [one for one in store.list("predictions/") if one.key.endswith("summary.json")])
    summary = read_document(store, stat.key)
    assert (summary["release"], summary["images"]) == (service.in_service(store).version, 3)
    assert len(champion.history(store)) == 2
    manifest = service.open_release(store, service.in_service(store).version).manifest
    assert manifest["run_id"] == "approved"
    assert manifest["verdict"]["decision"] == "hold"
    assert manifest["verdict"]["approval"]["by"] == "admin"


@pytest.fixture
def own_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that a test may stop and start; where there can be none, `server` says so."""
    own = Server(tmp_path / "minio")
    own.start()
    for name, value in own.credentials.items():
        monkeypatch.setenv(name, value)
    yield own
    own.stop()


def test_a_server_that_is_gone_ends_the_run_red_and_cleared_tasks_finish_it(
    own_migrated: Path, finished: Line, own_server: Server
) -> None:
    store = own_server.store("fmnist")
    for stat in finished.store.list(""):
        store.put(stat.key, finished.store.get(stat.key))
    before = champion.history(store)
    airflow = Airflow(own_migrated, finished, {"FMNIST_STORE": own_server.uri("fmnist")})
    with airflow.standalone() as url:
        airflow.postpone_schedule()
        airflow.unpause(DAG_ID)
        run_id = airflow.api(url).trigger(DAG_ID, QUICK | {"seed": 1})
        until(lambda: airflow.states(run_id).get("promotion_gate") == "success", every=0.05)
        own_server.stop()
        until(lambda: airflow.state(run_id) == "failed")
        assert airflow.states(run_id)["publish"] == "failed"
        (log,) = airflow.home.glob(f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=release.publish/attempt=3.log")
        assert (
            f"{own_server.endpoint} accepts no connection; see that the server runs, and clear the task"
            in log.read_text()
        )

        own_server.start()
        assert champion.history(store) == before
        code, output = airflow("airflow", "tasks", "clear", DAG_ID, "--yes", "--only-failed")
        assert code == 0, output
        until(lambda: airflow.state(run_id) == "success")
    assert [entry.write_id for entry in champion.history(store)] == [before[0].write_id, run_id]
    service.open_release(store, service.in_service(store).version)
