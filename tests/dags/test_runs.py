"""The real DAG in a real Airflow, by `airflow dags test`, on made data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.settings import APPROVAL_LIMIT, DAG_ID, Settings
from tests.support import synthetic
from tests.support.airflow_home import QUICK, Airflow, until
from tests.support.pipeline import Line

pytestmark = pytest.mark.integration


@pytest.fixture
def airflow(migrated: Path, line: Line) -> Airflow:
    return Airflow(migrated, line)


def test_a_run_that_passes_emits_the_champion_and_a_task_can_be_run_alone(airflow: Airflow) -> None:
    code, output = airflow.run(candidates=2)
    assert code == 0, output
    assert "train-0 done" in output
    assert "train-1 done" in output
    entry = service.in_service(airflow.line.store)
    assert re.search(rf"promote +done .*{entry.version} is the champion, number 1", output)
    for line in (
        "validation accuracy, base",
        "test accuracy, base",
        "accuracy gate +promote",
        "promotion gate +promote",
    ):
        assert re.search(line, output), line
    (extra,) = airflow.query("select extra from asset_event")[-1]
    assert json.loads(extra)["version"] == entry.version
    assert json.loads(extra)["accuracy"] > 0.92

    run_id = service.open_release(airflow.line.store, entry.version).manifest["run_id"]
    code, output = airflow("airflow", "tasks", "test", DAG_ID, "base_model.accuracy_gate", run_id)
    assert code == 0, output
    assert "accuracy_gate done" in output
    assert len(champion.history(airflow.line.store)) == 1


def test_nothing_changed_ends_green_without_training(migrated: Path, finished: Line) -> None:
    airflow = Airflow(migrated, finished)
    before = champion.history(finished.store)
    code, output = airflow.run()
    assert code == 0, output
    assert "nothing changed: data, code and parameters are those of the champion" in output
    assert "train-0 begins" not in output
    assert champion.history(finished.store) == before


def test_a_weak_model_ends_red_with_an_alert_and_the_champion_stays(migrated: Path, finished: Line) -> None:
    airflow = Airflow(migrated, finished)
    labels = synthetic.images(600, 2)[1]
    labels[:3] = (
        labels[:3] + 1
    ) % synthetic.CLASSES  # no model can be right on these; the checks would see more of them
    synthetic.declare(finished.data, test_labels=labels)
    before = champion.history(finished.store)
    code, output = airflow.run(accuracy_threshold=0.999)
    assert code == 1, output
    assert re.search(
        r"ALERT rejected in fmnist_retrain, run \S+: Task base_model.accuracy_gate: base model rejected", output
    )
    assert re.search(r"test accuracy is [0-9.]+%, below the bound of 99.90%", output)
    assert f"Champion in service: {before[-1].version}" in output
    assert output.count("ALERT") == 1
    assert "fine_tune begins" not in output
    assert champion.history(finished.store) == before
    assert len(releases.versions(finished.store)) == 1


def test_bad_data_ends_red_without_a_second_try(airflow: Airflow) -> None:
    (airflow.line.data / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    code, output = airflow.run()
    assert code == 1, output
    assert output.count("ingest begins") == 1
    assert "trying again cannot help" in output
    assert re.search(r"ALERT run failed .*Task data.ingest: .*no source has its four files intact", output)
    assert "There is no champion yet" in output


def test_a_store_that_does_not_answer_is_tried_again(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    (airflow.line.home / "store").write_text("no folder")
    code, output = airflow.run()
    assert code == 1, output
    assert output.count("ingest begins") == 3
    assert output.count("ALERT") == 1
    assert "Not a directory; free space" in output


def test_a_run_that_was_killed_is_followed_by_one_that_ends_well(airflow: Airflow) -> None:
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
    assert champion.champion(airflow.line.store) is None
    code, output = airflow.run()
    assert code == 0, output
    assert len(champion.history(airflow.line.store)) == 1


def test_a_training_that_is_killed_in_a_scheduler_goes_on_from_its_checkpoint(own_migrated: Path, line: Line) -> None:
    airflow = Airflow(own_migrated, line)
    with airflow.standalone():
        run_id = airflow.begun()
        until(lambda: list(line.store.list(f"checkpoints/{run_id}/base-0/")))
        ((process,),) = airflow.query("select pid from task_instance where task_id = 'base_model.train'")
        os.kill(process, signal.SIGKILL)
        until(lambda: airflow.state(run_id) in {"success", "failed"})
        assert airflow.state(run_id) == "success"
    task = airflow.home / f"logs/dag_id={DAG_ID}/run_id={run_id}/task_id=base_model.train/map_index=0"
    assert "going on from" not in (task / "attempt=1.log").read_text()
    assert f"going on from checkpoints/{run_id}/base-0/" in (task / "attempt=2.log").read_text()
    assert len(champion.history(line.store)) == 1


HELD = {"approval": True, "policy": {"speed": {"bytes_at_most": 1}}}


def three_days_pass(airflow: Airflow, run_id: str) -> None:
    """Nobody answers until the time is over, which Airflow keeps with the task."""
    task = f"where task_id = 'tuned_model.approval' and run_id = '{run_id}'"
    ((begun, ends),) = airflow.query(f"select start_date, trigger_timeout from task_instance {task}")  # noqa: S608
    beyond = datetime.fromisoformat(ends) - datetime.fromisoformat(begun) - APPROVAL_LIMIT
    assert timedelta() <= beyond < timedelta(minutes=1)
    airflow.query(f"update task_instance set trigger_timeout = start_date {task}")  # noqa: S608


def test_a_held_candidate_waits_for_a_person_in_a_scheduler(own_migrated: Path, line: Line) -> None:
    line.store.put("inbox/batch.npz", synthetic.npz(images=synthetic.images(3, 5)[0]))
    airflow = Airflow(own_migrated, line, {"FMNIST_PREDICT_PREFIX": "inbox/"})
    with airflow.standalone() as url:
        first = airflow.begun()  # this week's run, which holds nothing
        until(lambda: airflow.state(first) == "success")
        airflow.unpause("fmnist_predict")
        answers = ("refused", "Reject", "failed"), ("late", "", "failed"), ("approved", "Approve", "success")
        for seed, (run_id, option, ends) in enumerate(answers, start=1):
            conf = json.dumps(QUICK | HELD | {"seed": seed})
            code, output = airflow("airflow", "dags", "trigger", DAG_ID, "--run-id", run_id, "--conf", conf)
            assert code == 0, output
            until(lambda run_id=run_id: airflow.asks(run_id))
            assert airflow.states(run_id)["publish"] is None
            assert len(releases.versions(line.store)) == 1
            if option:
                airflow.answer(url, run_id, option)
            else:
                three_days_pass(airflow, run_id)
            until(lambda run_id=run_id: airflow.state(run_id) in {"success", "failed"})
            assert airflow.state(run_id) == ends
        # A new champion answers what lies in the inbox.
        (stat,) = until(lambda: [one for one in line.store.list("predictions/") if one.key.endswith("summary.json")])
    summary = read_document(line.store, stat.key)
    assert (summary["release"], summary["images"]) == (service.in_service(line.store).version, 3)
    assert len(champion.history(line.store)) == 2
    manifest = service.open_release(line.store, service.in_service(line.store).version).manifest
    assert manifest["run_id"] == "approved"
    assert manifest["verdict"]["decision"] == "hold"
    assert manifest["verdict"]["approval"]["by"] == "admin"


def test_a_run_without_a_scheduler_never_waits(airflow: Airflow) -> None:
    code, output = airflow.run(**HELD)
    assert code == 1, output
    assert "candidate rejected: the size in bytes is" in output
    assert champion.champion(airflow.line.store) is None


def test_quick_on_the_real_images_passes_the_gate_and_plain_keras_agrees(migrated: Path, tmp_path: Path) -> None:
    project = Settings.from_environment()
    real = {
        "FMNIST_HOME": str(tmp_path),
        "FMNIST_STORE": "",
        "FMNIST_DATASET": "",
        "FMNIST_DATA_DIR": str(project.cache / "fashion-mnist"),
    }
    airflow = Airflow(migrated, Line(tmp_path), real)
    code, output = airflow.run()
    assert code == 0, output
    manifest = service.open_release(airflow.line.store, service.in_service(airflow.line.store).version).manifest
    accuracy = manifest["figures"]["test"]["accuracy"]
    assert manifest["figures"]["test"]["images"] == 10_000
    assert accuracy >= 0.92
    assert manifest["figures"]["base_test_accuracy"] >= 0.92

    program = """
import gzip, json, sys
import keras, numpy
folder, model = sys.argv[1:]
read = lambda name, offset: numpy.frombuffer(gzip.open(f"{folder}/t10k-{name}-ubyte.gz").read(), "uint8", offset=offset)
images, labels = read("images-idx3", 16).reshape(-1, 28, 28, 1), read("labels-idx1", 8)
probabilities, _ = keras.models.load_model(model, compile=False).predict(images, batch_size=500, verbose=0)
assert not any(name.startswith("fmnist") for name in sys.modules)
print((probabilities.argmax(axis=1) == labels).mean())
"""
    model = airflow.line.store.location(manifest["files"]["model.h5"]["uri"])
    arguments = [sys.executable, "-c", program, manifest["data"]["source"], model]
    ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(ended.stdout) == pytest.approx(accuracy, abs=1e-9)


def test_the_command_line_knows_the_dag(airflow: Airflow) -> None:
    code, output = airflow("airflow", "dags", "reserialize")
    assert code == 0, output
    code, output = airflow("airflow", "dags", "list", "--output", "json")
    assert DAG_ID in output
    code, output = airflow("airflow", "dags", "list-import-errors", "--output", "plain")
    assert "No data found" in output
