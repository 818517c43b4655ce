"""The other DAGs in a real Airflow: rollback, batch prediction, watch."""

from __future__ import annotations

import csv
import io
import json
import runpy
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from fmnist_tasks import announcement
from fmnist_tasks.registry import champion, stores
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.store import read_clock
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.serving.rollback import roll_back
from fmnist_tasks.settings import PROJECT
from tests.support import synthetic
from tests.support.airflow_in_process import AirflowInProcess
from tests.support.pipeline import Pipeline

DAG_IDS = ("fmnist_predict", "fmnist_rollback", "fmnist_watch")


@pytest.mark.parametrize("name", DAG_IDS)
def test_every_task_has_documentation_and_alerts(name: str, pipeline: Pipeline) -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / f"{name}.py"))[name]()
    assert dag.dag_id == name
    assert dag.doc_md
    assert dag.max_active_runs == 1
    for task in dag.tasks:
        assert task.doc_md, task.task_id
        assert task.on_failure_callback, task.task_id
    for parameter in dag.params:
        schema = dag.params.get_param(parameter).schema
        assert {"title", "type", "section"} <= set(schema), parameter


def test_the_form_of_a_rollback_requires_a_release_and_a_reason() -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / "fmnist_rollback.py"))["fmnist_rollback"]()
    for name in ("version", "reason"):
        with pytest.raises(Exception, match=r"too short|non-empty"):
            dag.params.get_param(name).resolve("")


def test_the_watch_runs_hourly_from_the_start() -> None:
    dag = runpy.run_path(str(PROJECT / "dags" / "fmnist_watch.py"))["fmnist_watch"]()
    assert (dag.is_paused_upon_creation, dag.timetable.expression) == (False, "0 * * * *")


@pytest.mark.parametrize("path", sorted((PROJECT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_parsing_does_not_open_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dag-processor parses every file repeatedly, and drops a file that waits for a store."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError(f"{path.name} opens the store")

    monkeypatch.setattr(stores, "open_store", refuse)
    runpy.run_path(str(path))


@pytest.mark.integration
def test_a_rollback_appends_a_log_entry(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    first = require_champion(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    conf = {"version": first, "reason": "the second was worse"}
    code, output = airflow.test_dag("fmnist_rollback", **conf)
    assert code == 0, output
    entry = require_champion(finished_pipeline.store)
    assert (entry.version, entry.action, entry.reason) == (first, "rollback", "the second was worse")
    code, output = airflow.test_dag("fmnist_rollback", **conf)
    assert code == 1, output
    assert "is already the champion" in output
    assert len(champion.list_entries(finished_pipeline.store)) == 3


@pytest.mark.integration
def test_images_below_a_prefix_are_classified(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    images, labels = synthetic.make_images(5, 3)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        finished_pipeline.store.put(f"inbox/{number}.png", buffer.getvalue())
    code, output = airflow.test_dag("fmnist_predict", prefix="inbox/", files=2)
    assert code == 0, output
    (key,) = [stat.key for stat in finished_pipeline.store.list("predictions/") if stat.key.endswith("summary.json")]
    summary = read_document(finished_pipeline.store, key)
    assert (summary["images"], len(summary["files"])) == (5, 3)
    tables = [io.StringIO(finished_pipeline.store.get(file).decode()) for file in summary["files"]]
    classes = {row["image"]: row["class"] for table in tables for row in csv.DictReader(table)}
    assert classes == {f"inbox/{number}.png": f"pattern {label}" for number, label in enumerate(labels)}


@pytest.mark.integration
def test_without_a_prefix_the_run_is_skipped(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    code, output = airflow.test_dag("fmnist_predict")
    assert code == 0, output
    assert list(finished_pipeline.store.list("predictions/")) == []


@pytest.mark.integration
def test_the_watch_reports_when_a_run_last_succeeded(airflow: AirflowInProcess, finished_pipeline: Pipeline) -> None:
    code, output = airflow.test_dag("fmnist_watch")
    assert code == 0, output
    assert "The last successful run was at" in output


@pytest.mark.integration
def test_the_watch_announces_an_unannounced_champion(
    airflow: AirflowInProcess, finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = require_champion(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    entry = roll_back(finished_pipeline.store, first, "from a shell without Airflow", actor="ann")

    def run_watch() -> list[dict[str, object]]:
        before = airflow.query_database("select max(id) from asset_event")[0][0] or 0
        code, output = airflow.test_dag("fmnist_watch")
        assert code == 0, output
        rows = airflow.query_database(f"select extra from asset_event where id > {before}")  # noqa: S608
        return [json.loads(extra) for (extra,) in rows]

    airflow.query_database("delete from asset_event")  # of other tests, whose finished run has the same version
    assert run_watch() == []  # the process that rolled back may still announce it
    monkeypatch.setattr(announcement, "read_clock", lambda store: read_clock(store) + timedelta(hours=1))
    assert run_watch() == [{"version": first, "sequence": entry.sequence}]
    assert run_watch() == []


@pytest.mark.integration
def test_a_shell_announces_a_champion_if_it_reaches_airflow(
    airflow: AirflowInProcess, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = champion.append_entry(pipeline.store, version="v1", action="promote", reason="r", write_id="w", after=0)
    code, output = airflow("dags", "reserialize")  # now Airflow knows the asset
    assert code == 0, output
    assert announcement.announce_champion(entry, "")
    (extra,) = airflow.query_database("select extra from asset_event order by id")[-1]
    assert json.loads(extra) == {"version": "v1", "sequence": 1}
    monkeypatch.setattr(announcement, "name_champion_asset", lambda _: "an asset that no DAG has")
    assert not announcement.announce_champion(entry, "")
    monkeypatch.delenv("AIRFLOW_HOME")
    assert not announcement.announce_champion(entry, "")
    assert announcement.find_unannounced_champion(pipeline.store, "v1") is None
