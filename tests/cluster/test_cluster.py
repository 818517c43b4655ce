"""`make cluster`, `make run-cluster` and `make cluster-down` as a user has them, on made data."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from flask_login.utils import encode_cookie

from fmnist_tasks.settings import DAG_ID, PROJECT
from tests.support.airflow_home import UNSCHEDULED, wait_until
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.commands import start_cluster
from tests.support.cluster.declaration import read_settings
from tests.support.cluster.programs import Program
from tests.support.cluster.supervision import Supervisor
from tests.support.pipeline import Pipeline
from tests.support.ports import reserve_port
from tests.support.requirements import MINIO, POSTGRES, REDIS, require
from tests.support.roles import count_switchable_dags, create_user, find_rights

pytestmark = pytest.mark.integration
SHORT_TIMEOUTS = {  # what takes minutes in service
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
}
REVIEW = {"look", "try", "approve", "train"}
RIGHTS = {  # of FAB's roles, as docs/ui.md#roles has them
    "Viewer": {"look", "try"},
    "User": REVIEW,
    "Op": REVIEW,
    "Admin": REVIEW
    | {f"{action} by the {where}" for action in ("roll back", "withdraw") for where in ("page", "DAG")}
    | {"roll back once more", "write a result"},
}
SECRETS = ("PASSWORD", "KEY", "SECRET")

# As a worker of Celery that is told to end while a task is on its way to it: the task is a session of its own.
BEGINS_AS_IT_ENDS = """\
#!/usr/bin/env bash
trap 'setsid sleep 987 & sleep 1; exit' TERM
touch {folder}/ready
while true; do sleep 0.1; done
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where Postgres, another user, can pass, as in pytest's own folders it cannot."""
    made = Path(tempfile.mkdtemp(prefix="fmnist-cluster-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def stores() -> None:
    """Postgres, Redis and MinIO are on this machine."""
    require(POSTGRES, REDIS, MINIO)


def cluster_command(folder: Path, *words: str) -> list[str | Path]:
    return [sys.executable, "-m", "tests.support.cluster", "--folder", folder, *words]


def command(folder: Path, pipeline: Pipeline, *words: str) -> subprocess.CompletedProcess[str]:
    given = {"FMNIST_DATASET": str(pipeline.data / "made.toml"), "FMNIST_DATA_DIR": str(pipeline.data)}
    return subprocess.run(
        cluster_command(folder, *words), cwd=PROJECT, env=os.environ | given, capture_output=True, text=True
    )


def of_cluster(folder: Path) -> list[psutil.Process]:
    """The processes that have the cluster's folder in their command, environment or working folder."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in told):
            found.append(process)
    return found


def listening(folder: Path) -> set[tuple[str, int]]:
    found = set()
    for process in of_cluster(folder):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            connections = process.net_connections("tcp")
            found |= {tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN}
    return found


def is_let_in(port: int, key: str) -> bool:
    """Whether the UI takes a cookie that says "I am user 1, remember me", signed with this key."""
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/auth/login/", headers={"Cookie": f"remember_token={encode_cookie('1', key=key)}"})
    with closing(connection), connection.getresponse() as answer:
        return any(cookie.startswith("_token=") for cookie in answer.headers.get_all("Set-Cookie", []))


def scripts(folder: Path) -> list[str]:
    return [script.read_text() for script in (folder / "programs").iterdir()]


@pytest.mark.usefixtures("stores")
def test_a_cluster_survives_the_loss_of_a_worker_in_training_and_leaves_nothing_behind(
    folder: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no cluster is running" in command(folder, pipeline, "run", "{}").stderr
    cluster, supervisor, port = Cluster(folder), Supervisor(folder), reserve_port()
    try:
        location = start_cluster(folder, 2, port, SHORT_TIMEOUTS | UNSCHEDULED)
        said = capsys.readouterr().out
        assert f"http://127.0.0.1:{port} " in said
        assert len(of_cluster(folder)) >= 9
        # Logs are served on every interface, Airflow has no other way, to who signs with the cluster's secret.
        logs = {setting for text in scripts(folder) for setting in re.findall(r"LOG_SERVER_PORT=(\d+)", text)}
        assert {str(port) for ip, port in listening(folder) if ip not in {"127.0.0.1", "::1"}} <= logs
        assert port in {port for _, port in listening(folder)}
        assert "the cluster is already running" in command(folder, pipeline, "up", "--port", str(port)).stderr

        settings = cluster.provide_settings()
        assert [name for name in ("SESSION_KEY", "LOG_KEY") if is_let_in(port, settings[name])] == ["SESSION_KEY"]

        store, api = cluster.open_store(location), cluster.open_api(f"http://127.0.0.1:{port}")
        with (tmp_path / "run.txt").open("w+") as ran:
            run = subprocess.Popen(cluster_command(folder, "run", '{"profile": "quick"}'), cwd=PROJECT, stdout=ran)
            checkpoint = wait_until(lambda: list(store.list("checkpoints/")), every=0.05)[0].key
            run_id = checkpoint.split("/")[1]
            (train,) = (task for task in api.list_tasks(DAG_ID, run_id) if task["task_id"] == "base_model.train")
            workers = {supervisor.find_pid(f"worker-{number}") for number in (1, 2)}
            (lost,) = (parent for parent in psutil.Process(train["pid"]).parents() if parent.pid in workers)
            for process in [*lost.children(recursive=True), lost]:
                with suppress(psutil.NoSuchProcess):  # one that has just ended
                    process.kill()
            assert run.wait() == 0, ran.seek(0) or ran.read()
            ran.seek(0)
            said += ran.read()
        assert "release.promote" in said
        (train,) = (task for task in api.list_tasks(DAG_ID, run_id) if task["task_id"] == "base_model.train")
        assert train["try_number"] == 2
        log = (
            f"{api.build_run_path(DAG_ID, run_id)}/taskInstances/base_model.train/logs/2?map_index=0&full_content=true"
        )
        assert f"going on from checkpoints/{run_id}/base-0/" in json.dumps(api.send_request("GET", log))
        champion = subprocess.run(
            [folder / "programs" / "worker-2", "fmnist", "champion", "--json"], capture_output=True
        )
        assert b'"action": "promote"' in champion.stdout
        users = {role: create_user(api, role) for role in ("Viewer", "User", "Op", "Admin")}
        assert {role: find_rights(user) for role, user in users.items()} == RIGHTS
        assert [count_switchable_dags(users[role]) for role in ("Op", "Admin")] == [0, 2]
    finally:
        down = command(folder, pipeline, "down")
    assert "stopped" in down.stdout
    assert of_cluster(folder) == []
    assert "no cluster is running" in command(folder, pipeline, "down").stdout

    secrets = [value for name, value in read_settings(folder / ".env").items() if value and name.endswith(SECRETS)]
    # What people and tasks read; MinIO's own list of its users, in .minio.sys, has to know their secrets.
    parts = ("logs", "airflow", "minio/fmnist", "minio/fmnist-logs")
    told = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    logs = b"\n".join(path.read_bytes() for path in told)
    assert b"Executing workload in Celery" in logs
    assert [secret for secret in secrets if secret.encode() in logs or secret in said] == []


def test_a_port_that_is_taken_is_named(folder: Path, pipeline: Pipeline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        up = command(folder, pipeline, "up", "--port", port)
    assert (up.returncode, of_cluster(folder)) == (1, [])
    assert f"port {port} is taken" in up.stderr


@pytest.mark.parametrize("name", ["a b", "100%", "%(ENV_PATH)s ;#'", "long" * 40])
def test_a_cluster_stands_below_any_folder_and_knows_no_secret_of_the_shell(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "secret")
    below = folder / name
    (below / "programs").mkdir(parents=True)
    script, health = below / "programs" / "worker", below / "programs" / "worker.health"
    script.write_text("#!/bin/sh\nenv >environment\ntouch ready\nexec sleep 987\n")
    health.write_text('#!/bin/sh\ntest -e "${0%/*}/../ready"\n')
    for file in (script, health):
        file.chmod(0o755)
    supervisor, program = Supervisor(below), Program("worker", script, health, (), "TERM")
    supervisor.start_daemon([program])
    try:
        supervisor.start_all([program])
        socket_folder = (below / "socket").readlink()
        assert psutil.Process(supervisor.find_pid("worker")).cwd() == str(below)
        assert socket_folder.stat().st_mode & 0o777 == 0o700
        told = (below / "environment").read_text() + " ".join(supervisor.find_daemon().environ())
        assert "SECRET_OF_THE_SHELL" not in told
    finally:
        supervisor.shut_down()
    assert of_cluster(below) == []
    assert not socket_folder.exists()


def test_a_process_that_is_begun_while_everything_stops_is_stopped_too(folder: Path) -> None:
    script, health = folder / "program", folder / "health"
    script.write_text(BEGINS_AS_IT_ENDS.format(folder=folder))
    health.write_text(f"#!/usr/bin/env bash\ntest -e {folder}/ready\n")
    for file in (script, health):
        file.chmod(0o755)
    supervisor = Supervisor(folder)
    program = Program("late", script, health, (), "TERM")
    supervisor.start_daemon([program])
    supervisor.start_all([program])
    assert supervisor.shut_down()
    assert of_cluster(folder) == []
    assert not supervisor.shut_down()
