"""`make cluster`, `make run-cluster` and `make cluster-down`, as a user calls them, on synthetic images."""

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
SHORT_TIMEOUTS = {  # these take minutes in production
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
}
REVIEW = {"look", "try", "approve", "train"}
RIGHTS = {  # by role of FAB, as in docs/ui.md#roles
    "Viewer": {"look", "try"},
    "User": REVIEW,
    "Op": REVIEW,
    "Admin": REVIEW
    | {f"{action} by the {where}" for action in ("roll back", "withdraw") for where in ("page", "DAG")}
    | {"clear a rollback", "edit a task result"},
}
SECRETS = ("PASSWORD", "KEY", "SECRET")

# Like a Celery worker that receives a task while it stops: the task runs in a new session.
STARTS_A_PROCESS_WHEN_STOPPED = """\
#!/usr/bin/env bash
trap 'setsid sleep 987 & sleep 1; exit' TERM
touch {folder}/ready
while true; do sleep 0.1; done
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a cluster. Postgres, which runs as another user, cannot traverse pytest's temporary folders."""
    folder = Path(tempfile.mkdtemp(prefix="fmnist-cluster-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stores() -> None:
    """Skip the test if this machine lacks Postgres, Redis or MinIO."""
    require(POSTGRES, REDIS, MINIO)


def build_command(folder: Path, *words: str) -> list[str | Path]:
    return [sys.executable, "-m", "tests.support.cluster", "--folder", folder, *words]


def call_cluster(folder: Path, pipeline: Pipeline, *words: str) -> subprocess.CompletedProcess[str]:
    dataset = {"FMNIST_DATASET": str(pipeline.data / "dataset.toml"), "FMNIST_DATA_DIR": str(pipeline.data)}
    return subprocess.run(
        build_command(folder, *words), cwd=PROJECT, env=os.environ | dataset, capture_output=True, text=True
    )


def list_processes(folder: Path) -> list[psutil.Process]:
    """The processes that have the cluster's folder in their command, environment or working folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in texts):
            processes.append(process)
    return processes


def list_listening_addresses(folder: Path) -> set[tuple[str, int]]:
    """IP address and port of every TCP socket on which the cluster listens."""
    addresses = set()
    for process in list_processes(folder):
        with suppress(psutil.NoSuchProcess):  # it may have just ended
            connections = process.net_connections("tcp")
            addresses |= {
                tuple(connection.laddr) for connection in connections if connection.status == psutil.CONN_LISTEN
            }
    return addresses


def signs_in(port: int, key: str) -> bool:
    """Whether the UI accepts a "remember me" cookie of user 1 that is signed with this key."""
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/auth/login/", headers={"Cookie": f"remember_token={encode_cookie('1', key=key)}"})
    with closing(connection), connection.getresponse() as response:
        return any(cookie.startswith("_token=") for cookie in response.headers.get_all("Set-Cookie", []))


def read_scripts(folder: Path) -> list[str]:
    return [script.read_text() for script in (folder / "programs").iterdir()]


@pytest.mark.exhaustive  # three minutes
@pytest.mark.usefixtures("stores")
def test_a_cluster_survives_the_loss_of_a_worker_in_training_and_leaves_nothing_behind(
    folder: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no cluster is running" in call_cluster(folder, pipeline, "run", "{}").stderr
    cluster, supervisor, port = Cluster(folder), Supervisor(folder), reserve_port()
    try:
        location = start_cluster(folder, 2, port, SHORT_TIMEOUTS | UNSCHEDULED)
        output = capsys.readouterr().out
        assert f"http://127.0.0.1:{port} " in output
        assert len(list_processes(folder)) >= 9
        # Airflow can only serve logs on every interface. A request must be signed with the cluster's secret.
        log_ports = {port for script in read_scripts(folder) for port in re.findall(r"LOG_SERVER_PORT=(\d+)", script)}
        addresses = list_listening_addresses(folder)
        assert {str(port) for ip, port in addresses if ip not in {"127.0.0.1", "::1"}} <= log_ports
        assert port in {port for _, port in addresses}
        assert "the cluster is already running" in call_cluster(folder, pipeline, "up", "--port", str(port)).stderr

        settings = cluster.provide_settings()
        assert [name for name in ("SESSION_KEY", "LOG_KEY") if signs_in(port, settings[name])] == ["SESSION_KEY"]

        store, api = cluster.open_store(location), cluster.open_api(f"http://127.0.0.1:{port}")
        with (tmp_path / "run.txt").open("w+") as run_output:
            command = build_command(folder, "run", '{"profile": "quick"}')
            run = subprocess.Popen(command, cwd=PROJECT, stdout=run_output)
            checkpoint = wait_until(lambda: list(store.list("checkpoints/")), every=0.05)[0].key
            run_id = checkpoint.split("/")[1]
            (train,) = (task for task in api.list_tasks(DAG_ID, run_id) if task["task_id"] == "base_model.train")
            workers = {supervisor.find_pid(f"worker-{number}") for number in (1, 2)}
            (lost,) = (parent for parent in psutil.Process(train["pid"]).parents() if parent.pid in workers)
            for process in [*lost.children(recursive=True), lost]:
                with suppress(psutil.NoSuchProcess):  # it may have just ended
                    process.kill()
            assert run.wait() == 0, run_output.seek(0) or run_output.read()
            run_output.seek(0)
            output += run_output.read()
        assert "release.promote" in output
        (train,) = (task for task in api.list_tasks(DAG_ID, run_id) if task["task_id"] == "base_model.train")
        assert train["try_number"] == 2
        log_path = (
            f"{api.build_run_path(DAG_ID, run_id)}/taskInstances/base_model.train/logs/2?map_index=0&full_content=true"
        )
        assert f"resuming from checkpoints/{run_id}/base-0/" in json.dumps(api.send_request("GET", log_path))
        champion = subprocess.run(
            [folder / "programs" / "worker-2", "fmnist", "champion", "--json"], capture_output=True
        )
        assert b'"action": "promote"' in champion.stdout
        users = {role: create_user(api, role) for role in ("Viewer", "User", "Op", "Admin")}
        assert {role: find_rights(user) for role, user in users.items()} == RIGHTS
        assert [count_switchable_dags(users[role]) for role in ("Op", "Admin")] == [0, 2]
    finally:
        down = call_cluster(folder, pipeline, "down")
    assert "stopped" in down.stdout
    assert list_processes(folder) == []
    assert "no cluster is running" in call_cluster(folder, pipeline, "down").stdout

    secrets = [value for name, value in read_settings(folder / ".env").items() if value and name.endswith(SECRETS)]
    # Only what users and tasks can read. MinIO has to store the secrets of its users in .minio.sys.
    subfolders = ("logs", "airflow", "minio/fmnist", "minio/fmnist-logs")
    files = [path for subfolder in subfolders for path in (folder / subfolder).rglob("*") if path.is_file()]
    content = b"\n".join(path.read_bytes() for path in files)
    assert b"Executing workload in Celery" in content
    assert [secret for secret in secrets if secret.encode() in content or secret in output] == []


def test_a_port_in_use_is_reported(folder: Path, pipeline: Pipeline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        up = call_cluster(folder, pipeline, "up", "--port", port)
    assert (up.returncode, list_processes(folder)) == (1, [])
    assert f"port {port} is taken" in up.stderr


@pytest.mark.parametrize("name", ["a b", "100%", "%(ENV_PATH)s ;#'", "long" * 40])
def test_a_cluster_works_in_any_folder_and_does_not_inherit_secrets_of_the_shell(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "secret")
    subfolder = folder / name
    (subfolder / "programs").mkdir(parents=True)
    script, health = subfolder / "programs" / "worker", subfolder / "programs" / "worker.health"
    script.write_text("#!/bin/sh\nenv >environment\ntouch ready\nexec sleep 987\n")
    health.write_text('#!/bin/sh\ntest -e "${0%/*}/../ready"\n')
    for file in (script, health):
        file.chmod(0o755)
    supervisor, program = Supervisor(subfolder), Program("worker", script, health, (), "TERM")
    supervisor.start_daemon([program])
    try:
        supervisor.start_all([program])
        socket_folder = (subfolder / "socket").readlink()
        assert psutil.Process(supervisor.find_pid("worker")).cwd() == str(subfolder)
        assert socket_folder.stat().st_mode & 0o777 == 0o700
        inherited = (subfolder / "environment").read_text() + " ".join(supervisor.find_daemon().environ())
        assert "SECRET_OF_THE_SHELL" not in inherited
    finally:
        supervisor.shut_down()
    assert list_processes(subfolder) == []
    assert not socket_folder.exists()


def test_a_process_that_starts_during_the_shutdown_is_stopped_too(folder: Path) -> None:
    script, health = folder / "program", folder / "health"
    script.write_text(STARTS_A_PROCESS_WHEN_STOPPED.format(folder=folder))
    health.write_text(f"#!/usr/bin/env bash\ntest -e {folder}/ready\n")
    for file in (script, health):
        file.chmod(0o755)
    supervisor = Supervisor(folder)
    program = Program("late", script, health, (), "TERM")
    supervisor.start_daemon([program])
    supervisor.start_all([program])
    assert supervisor.shut_down()
    assert list_processes(folder) == []
    assert not supervisor.shut_down()
