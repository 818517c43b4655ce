"""The DAG after parsing, without running a task."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.schemas.policy import Policy
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
    "tuned_model.approval",
    "release.publish",
    "release.verify_release",
    "release.promote",
]


@pytest.fixture(scope="module")
def dag():
    import runpy

    return runpy.run_path(str(DAG_FILE))["fmnist_retrain"]()


def test_the_tasks_form_one_pipeline(dag) -> None:
    assert sorted(dag.task_ids) == sorted(CHAIN)
    for earlier, later in pairwise(CHAIN):
        assert later in {task.task_id for task in dag.get_task(earlier).get_flat_relatives(upstream=False)}, later
    assert set(dag.task_group_dict) >= {"data", "base_model", "tuned_model", "release"}


def test_links_in_the_documentation_of_dags_follow_the_path_of_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from fmnist_defaults import link_pages

    text = (PROJECT / "dags" / "fmnist_watch.py").read_text() + DAG_FILE.read_text()
    links = re.findall(r"\]\(/[^)]*\)", text)
    assert len(links) >= 3
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/path/")
    linked = link_pages(text)
    assert re.findall(r"\]\([^)]*/fmnist/[^)]*\)", linked) == [
        link.replace("(/", "(https://airflow.example/path/") for link in links
    ]


def test_the_dag_has_its_schedule_limits_and_documentation(dag) -> None:
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
        ("2026-11-30T02:09", "2026-11-30T02:00"),  # during a restart of Airflow
        ("2026-11-30T02:11", "2026-12-07T02:00"),
        ("2026-12-02T12:00", "2026-12-07T02:00"),
        ("2026-12-07T01:59", "2026-12-07T02:00"),
    ],
)
def test_unpausing_does_not_start_a_past_run(dag, monkeypatch: pytest.MonkeyPatch, now: str, first: str) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: datetime.fromisoformat(f"{now}+00:00"))
    info = DagSerialization.from_dict(DagSerialization.to_dict(dag)).next_dagrun_info(last_automated_run_info=None)
    assert info.run_after == datetime.fromisoformat(f"{first}+00:00")


def test_tasks_pass_only_the_seeds(dag) -> None:
    inputs = {task.task_id: list(task.iter_mapped_dependencies()) for task in dag.tasks if task.is_mapped}
    assert {name: [task.task_id for task in tasks] for name, tasks in inputs.items()} == {
        "base_model.train": ["data.detect_change"]
    }
    assert {
        task.task_id for task in dag.tasks if getattr(task, "op_args", ()) or getattr(task, "op_kwargs", {})
    } == set()
    assert len(DAG_FILE.read_text().splitlines()) <= 150


def test_only_transient_errors_are_retried(dag) -> None:
    from http.client import IncompleteRead

    from httpx import ReadError
    from urllib3.exceptions import ProtocolError

    from fmnist_tasks.errors import DataError, RejectedError, StoreError

    for task in dag.tasks:
        assert task.retries == 2
        assert task.retry_exponential_backoff
        evaluate = task.retry_policy.evaluate
        assert evaluate(StoreError("gone"), 1, 2).action.value == "retry"
        transient = (
            ConnectionError(),
            OSError(28, "full"),
            TimeoutError(),
            IncompleteRead(b""),
            ProtocolError(),
            ReadError(""),
        )
        for error in transient:
            assert evaluate(error, 1, 2).action.value == "retry", error
        for error in (
            DataError("bad"),
            RejectedError("weak"),
            ValueError("bug"),
            FileNotFoundError(),
            PermissionError(),
        ):
            assert evaluate(error, 1, 2).action.value == "fail"


def test_every_parameter_has_a_title_a_description_a_type_and_a_valid_default(dag) -> None:
    assert set(dag.params) == set(Parameters().to_json())
    assert dag.params.dump() == Parameters().to_json()
    for name in dag.params:
        parameter = dag.params.get_param(name)
        assert parameter.description, name
        assert {"title", "type", "section"} <= set(parameter.schema), name


def test_the_example_policy_in_the_form_is_valid(dag) -> None:
    description = dag.params.get_param("policy").description
    example = re.search(r"\{.*\}", description)
    assert example
    sections = re.search(r"Sections: (.*?)\.", description)
    assert sections
    assert set(sections[1].split(", ")) == set(Policy.model_fields)
    assert read_policy(json.loads(example[0])) != read_policy({})


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
    """API server, scheduler and `airflow dags trigger` validate with the serialized DAG."""
    import runpy

    from airflow.exceptions import ParamValidationError
    from airflow.serialization.serialized_objects import DagSerialization

    serialized = json.loads(
        json.dumps(DagSerialization.to_dict(runpy.run_path(str(DAG_FILE.parent / f"{name}.py"))[name]()))
    )
    params = DagSerialization.from_dict(serialized).params
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {list(conf)[-1]}"):
        params.deep_merge(conf).validate()


def parse_dag(monkeypatch: pytest.MonkeyPatch, dag_id: str = "fmnist_retrain", **settings: str):
    """Parse a DAG again with these settings, as a dag-processor does, which uses a new process for each file."""
    import runpy

    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for path in DAG_FILE.parent.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return runpy.run_path(str(DAG_FILE.parent / f"{dag_id}.py"))[dag_id]()


def test_schedule_and_defaults_of_scheduled_runs_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"PROFILE": "quick", "CANDIDATES": "3", "APPROVAL": "true", "SCHEDULE": "30 4 * * 2", "OWNER": "vision"}
    dag = parse_dag(
        monkeypatch,
        **{f"FMNIST_{name}": value for name, value in settings.items()},
        FMNIST_TIMEZONE="Europe/Berlin",
        FMNIST_TAGS="a,b",
    )
    assert {name: dag.params[name] for name in ("profile", "candidates", "approval")} == {
        "profile": "quick",
        "candidates": 3,
        "approval": True,
    }
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("30 4 * * 2", "Europe/Berlin")
    assert ({task.owner for task in dag.tasks}, dag.tags) == ({"vision"}, {"a", "b"})


def test_without_a_schedule_runs_start_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(parse_dag(monkeypatch, FMNIST_SCHEDULE="none").timetable).__name__ == "NullTimetable"


@pytest.mark.parametrize(
    "expression",
    ["weekly", "0 2 * *", "61 2 * * 1", "* * * * * *", "0 0 30 2 *", "@once", " ", "R 2 * * 1", "H(0-9) 2 * * 1"],
)
def test_an_invalid_schedule_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    with pytest.raises(SettingsError, match=r"^FMNIST_SCHEDULE: .* is not a cron expression that has a next time"):
        parse_dag(monkeypatch, FMNIST_SCHEDULE=expression)


@pytest.mark.parametrize("schedule", ["@weekly", "0 2 29 2 *", "30 4 * * MON", "0 2 * MAR THU"])
def test_aliases_names_and_rare_days_are_a_schedule(monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    assert parse_dag(monkeypatch, FMNIST_SCHEDULE=schedule).timetable.expression in {schedule, "0 0 * * 0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FMNIST_SCHEDULE", "weekly"),
        ("FMNIST_TIMEZONE", "Mars/Olympus"),
        ("FMNIST_PROFILE", "fast"),
        ("FMNIST_TAGS", "x" * 101),
        ("FMNIST_GATES", "/no/such/gates.toml"),
        ("FMNIST_OWNER", "x" * 2100),
    ],
)
def test_the_watch_loads_and_reports_a_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    dag = parse_dag(monkeypatch, "fmnist_watch", **{name: value})
    with pytest.raises(SettingsError, match=f"^{name}: "):
        dag.get_task("check_settings").python_callable()


PARSE_EACH_FILE = """
import json, os, runpy, sys
import airflow.sdk  # once, as in the dag-processor
sys.path.append(sys.argv[1])
for path in sys.argv[2:]:
    if not os.fork():
        runpy.run_path(path)
        print(json.dumps([path, sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, path
"""


def test_parsing_imports_nothing_heavy() -> None:
    paths = [str(path) for path in sorted(DAG_FILE.parent.glob("*.py"))]
    command = [sys.executable, "-c", PARSE_EACH_FILE, str(DAG_FILE.parent), *paths]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    loaded = dict(json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    heavy = {"tensorflow", "keras", "great_expectations", "pandas", "matplotlib", "sklearn", "numpy", "h5py", "PIL"}
    heavy.add("boto3")
    assert {path: sorted(heavy.intersection(modules)) for path, modules in loaded.items()} == {
        path: [] for path in paths
    }


def test_imports_between_packages_go_one_way(tmp_path: Path) -> None:
    """dags, cli -> steps, page -> serving -> packages -> schemas, settings; gates import no framework."""
    package = PROJECT / "fmnist_tasks"
    forbidden = {
        "data": r"fmnist_tasks\.(model|evaluation|steps|cli|alerts|serving|page)",
        "model": r"fmnist_tasks\.(evaluation|steps|cli|alerts|serving|registry|page)",
        "evaluation": r"fmnist_tasks\.(model|steps|cli|alerts|serving|registry|page)",
        "registry": r"fmnist_tasks\.(data|model|evaluation|steps|cli|alerts|serving|page)",
        "alerts": r"fmnist_tasks\.(data|model|evaluation|steps|cli|serving|page)",
        "serving": r"fmnist_tasks\.(steps|cli|page)",
        "steps": r"fmnist_tasks\.(cli|page)",
        "page": r"fmnist_tasks\.(cli|steps)",
        "settings.py": r"fmnist_tasks\.(?!errors|text)",
        "schemas": r"(tensorflow|keras|airflow|fmnist_tasks\.(?!schemas|errors|text))",
        "evaluation/gate.py": r"(tensorflow|keras|airflow|fmnist_tasks\.(?!schemas\.evaluation))",
        ".": r"^(from|import) airflow",
    }
    for name, pattern in forbidden.items():
        paths = [package / name] if name.endswith(".py") else (package / name).rglob("*.py")
        for path in paths:
            if name == "." and path.name in {"auth.py", "plugin.py"}:  # only Airflow imports these
                continue
            imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import) ", line)]
            assert not [line for line in imports if re.search(pattern, line)], path
