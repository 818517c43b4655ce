"""The DAG as Airflow sees it, without running anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from fmnist_tasks.settings import PROJECT, Parameters

DAG_FILE = PROJECT / "dags" / "fmnist_retrain.py"
CHAIN = [
    "data.ingest",
    "data.validate_data",
    "data.detect_change",
    "base_model.train",
    "base_model.choose_base",
    "base_model.evaluate_base",
    "base_model.accuracy_gate",
    "tuned_model.fine_tune",
    "tuned_model.evaluate_tuned",
    "tuned_model.promotion_gate",
    "tuned_model.ask_user",
    "tuned_model.approval",
    "release.publish",
    "release.verify_release",
    "release.promote",
]


@pytest.fixture(scope="module")
def dag():
    import runpy

    return runpy.run_path(str(DAG_FILE))["fmnist_retrain"]()


def test_the_way_of_the_data(dag) -> None:
    assert sorted(dag.task_ids) == sorted(CHAIN)
    for earlier, later in pairwise(CHAIN):
        assert later in {task.task_id for task in dag.get_task(earlier).get_flat_relatives(upstream=False)}, later
    assert set(dag.task_group_dict) >= {"data", "base_model", "tuned_model", "release"}


def test_schedule_limits_and_documents(dag) -> None:
    assert type(dag.timetable).__name__ == "CronTriggerTimetable"
    assert "0 2 * * 1" in repr(dag.timetable)
    assert "UTC" in repr(dag.timetable)
    assert (dag.catchup, dag.max_active_runs, dag.dagrun_timeout) == (False, 1, timedelta(days=3, hours=12))
    assert {task.execution_timeout for task in dag.tasks if task.task_id != "tuned_model.approval"} == {
        timedelta(hours=6)
    }
    assert dag.get_task("tuned_model.approval").response_timeout == timedelta(days=3)
    assert "Weekly retraining" in dag.doc_md
    assert all(task.doc_md for task in dag.tasks)


@pytest.mark.parametrize(
    ("now", "first"),
    [
        ("2026-11-30T02:09", "2026-11-30T02:00"),  # Airflow was just being restarted
        ("2026-11-30T02:11", "2026-12-07T02:00"),
        ("2026-12-02T12:00", "2026-12-07T02:00"),
        ("2026-12-07T01:59", "2026-12-07T02:00"),
    ],
)
def test_unpausing_begins_no_run_of_the_past(dag, monkeypatch: pytest.MonkeyPatch, now: str, first: str) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: datetime.fromisoformat(f"{now}+00:00"))
    found = DagSerialization.from_dict(DagSerialization.to_dict(dag)).next_dagrun_info(last_automated_run_info=None)
    assert found.run_after == datetime.fromisoformat(f"{first}+00:00")


def test_what_a_task_hands_on_is_kept_once(dag) -> None:
    assert [task.task_id for task in dag.tasks if getattr(task, "multiple_outputs", False)] == []


def test_only_what_can_pass_is_tried_again(dag) -> None:
    from http.client import IncompleteRead

    from httpx import ReadError
    from urllib3.exceptions import ProtocolError

    from fmnist_tasks.errors import DataError, RejectedError, StoreError

    for task in dag.tasks:
        assert task.retries == 2
        assert task.retry_exponential_backoff
        decide = task.retry_policy.evaluate
        assert decide(StoreError("gone"), 1, 2).action.value == "retry"
        passing = (
            ConnectionError(),
            OSError(28, "full"),
            TimeoutError(),
            IncompleteRead(b""),
            ProtocolError(),
            ReadError(""),
        )
        for error in passing:
            assert decide(error, 1, 2).action.value == "retry", error
        for error in (
            DataError("bad"),
            RejectedError("weak"),
            ValueError("bug"),
            FileNotFoundError(),
            PermissionError(),
        ):
            assert decide(error, 1, 2).action.value == "fail"


def test_every_parameter_has_a_title_a_text_a_type_and_a_valid_default(dag) -> None:
    assert set(dag.params) == set(Parameters().as_json())
    assert dag.params.dump() == Parameters().as_json()
    for name in dag.params:
        parameter = dag.params.get_param(name)
        assert parameter.description, name
        assert {"title", "type", "section"} <= set(parameter.schema), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile", "fast"),
        ("seed", -1),
        ("seed", 1.0),
        ("seed", "1"),
        ("seed", True),
        ("candidates", 2.0),
        ("candidates", 0),
        ("candidates", 17),
        ("accuracy_threshold", 1.5),
        ("accuracy_threshold", "high"),
        ("policy", "strict"),
        ("approval", 1),
        ("force", "yes"),
    ],
)
def test_the_form_refuses_a_wrong_value(dag, name: str, value: object) -> None:
    from airflow.sdk.exceptions import AirflowException

    with pytest.raises((ValueError, AirflowException)):
        dag.params.get_param(name).resolve(value)


@pytest.mark.parametrize(
    ("name", "conf"),
    [
        ("fmnist_retrain", {"seed": 1.0}),
        ("fmnist_retrain", {"candidates": 2.0}),
        ("fmnist_retrain", {"accuracy_threshold": "0.9"}),
        ("fmnist_retrain", {"approval": "yes"}),
        ("fmnist_predict", {"prefix": 1}),
        ("fmnist_predict", {"files": 1.0}),
        ("fmnist_predict", {"files": 0}),
        ("fmnist_rollback", {"version": "v", "reason": ""}),
        ("fmnist_withdraw", {"name": "v", "reason": "why", "action": "delete"}),
        ("fmnist_rollback", {"version": "v", "reason": "why", "approval": 1}),
    ],
)
def test_a_conf_with_a_wrong_value_is_rejected_when_a_run_is_created(name: str, conf: dict[str, object]) -> None:
    """As the API server, the scheduler and `airflow dags trigger` do it, which know a DAG by its serialized form."""
    import runpy

    from airflow.exceptions import ParamValidationError
    from airflow.serialization.serialized_objects import DagSerialization

    serialized = json.loads(
        json.dumps(DagSerialization.to_dict(runpy.run_path(str(DAG_FILE.parent / f"{name}.py"))[name]()))
    )
    params = DagSerialization.from_dict(serialized).params
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {list(conf)[-1]}"):
        params.deep_merge(conf).validate()


def test_approval_of_scheduled_runs_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.setenv("FMNIST_APPROVAL", "true")
    dag = runpy.run_path(str(DAG_FILE))["fmnist_retrain"]()
    assert dag.params["approval"] is True


@pytest.mark.parametrize("path", sorted(DAG_FILE.parent.glob("*.py")), ids=lambda path: path.stem)
def test_parsing_imports_nothing_heavy(path: Path) -> None:
    program = (
        "import runpy, sys, json\n"
        f"sys.path.append({str(path.parent)!r})\n"
        f"runpy.run_path({str(path)!r})\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stdout.splitlines()[-1]))
    science = {"tensorflow", "keras", "great_expectations", "pandas", "matplotlib", "sklearn", "numpy", "h5py", "PIL"}
    assert loaded & (science | {"boto3"}) == set()


def test_no_room_imports_against_the_way(tmp_path: Path) -> None:
    """`dags, cli -> steps -> rooms -> settings`; `data` knows no model; the gate knows no framework and no store."""
    import re

    package = PROJECT / "fmnist_tasks"
    forbidden = {
        "data": r"fmnist_tasks\.(model|evaluation|steps|cli|alerts|service|page)",
        "model": r"fmnist_tasks\.(evaluation|steps|cli|alerts|service|registry|page)",
        "evaluation": r"fmnist_tasks\.(model|steps|cli|alerts|service|registry|page)",
        "registry": r"fmnist_tasks\.(data|model|evaluation|steps|cli|alerts|service|page)",
        "alerts": r"fmnist_tasks\.(data|model|evaluation|steps|cli|service|page)",
        "steps": r"fmnist_tasks\.(cli|page)",
        "page": r"fmnist_tasks\.(cli|steps)",
        "settings.py": r"fmnist_tasks\.(?!errors|text)",
        "evaluation/gate.py": r"(tensorflow|keras|airflow|fmnist_tasks\.(?!verdict))",
        ".": r"^(from|import) airflow",
    }
    for room, pattern in forbidden.items():
        paths = [package / room] if room.endswith(".py") else (package / room).rglob("*.py")
        for path in paths:
            if room == "." and path.name == "auth.py":  # a class of Airflow's, which Airflow alone imports
                continue
            imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import) ", line)]
            assert not [line for line in imports if re.search(pattern, line)], path
