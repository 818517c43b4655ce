"""A copied home or clone works in its new place and does not touch the original."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import copy_migrated_home
from tests.support.cluster.supervision import Supervisor
from tests.support.fresh_copy import copy_project, make_clean_environment

CONFIGURATION = """\
[core]
# dags_folder = {home}/dags is the default
dags_folder = {home}/dags
plugins_folder = {home}/plugins
[database]
sql_alchemy_conn = sqlite:///{home}/airflow.db
sql_engine_encoding = utf-8
[logging]
base_log_folder = {home}/logs
dag_processor_child_process_log_directory = {home}/logs/dag_processor
[fab]
config_file = {home}/webserver_config.py
"""


def follow_home(configuration: Path) -> str:
    subprocess.run([PROJECT / "include" / "follow-home", configuration], check=True)
    return configuration.read_text()


@pytest.mark.parametrize("home", ["/a/var/airflow", "/with a blank/&|$x\\1/logs", "/ü/airflow"])
def test_paths_in_airflow_cfg_follow_the_home(tmp_path: Path, home: str) -> None:
    configuration = tmp_path / "airflow.cfg"
    configuration.write_text(CONFIGURATION.format(home=home))
    configuration.chmod(0o600)
    followed = CONFIGURATION.format(home="$AIRFLOW_HOME").replace(
        "# dags_folder = $AIRFLOW_HOME", f"# dags_folder = {home}"
    )
    for _ in range(2):
        assert follow_home(configuration) == followed
    assert configuration.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [configuration]


def test_paths_that_a_user_has_changed_are_left_alone(tmp_path: Path) -> None:
    configuration = tmp_path / "airflow.cfg"
    edits = {"sqlite:////a/airflow/airflow.db": "postgresql://db/airflow", "/a/airflow/logs\n": "/data/logs\n"}
    text = CONFIGURATION.format(home="/a/airflow")
    expected = CONFIGURATION.format(home="$AIRFLOW_HOME").replace(
        "# dags_folder = $AIRFLOW_HOME", "# dags_folder = /a/airflow"
    )
    for before, after in edits.items():
        text = text.replace(before, after)
        expected = expected.replace(before.replace("/a/airflow", "$AIRFLOW_HOME"), after)
    configuration.write_text(text)
    assert follow_home(configuration) == expected
    configuration.write_text("[core]\ndags_folder = /my/dags\n")
    assert follow_home(configuration) == "[core]\ndags_folder = /my/dags\n"


def run_in_shell(command: str, **environment: str) -> str:
    """Run a command in a shell that has sourced include/activate, and return its standard output."""
    result = subprocess.run(
        ["bash", "-c", f"source '{PROJECT}/include/activate' && {command}"],
        env=make_clean_environment() | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_shell_follows_the_home_that_is_set_last(tmp_path: Path) -> None:
    show = "echo $FMNIST_HOME $AIRFLOW_HOME"
    again = f"FMNIST_HOME={tmp_path}/b && source '{PROJECT}/include/activate' && {show}"
    assert (
        run_in_shell(again)
        == run_in_shell(again, FMNIST_HOME=f"{tmp_path}/a")
        == f"{tmp_path}/b {tmp_path}/b/airflow\n"
    )
    assert run_in_shell(again, AIRFLOW_HOME="/own") == f"{tmp_path}/b /own\n"
    assert run_in_shell(f"cd {tmp_path} && FMNIST_HOME=here && source '{PROJECT}/include/activate' && {show}") == (
        f"{tmp_path}/here {tmp_path}/here/airflow\n"
    )


def read_tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time (ns) and SHA-256 of each file, by relative path."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.exhaustive
def test_a_copied_home_works_and_does_not_touch_the_original(finished_home: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "the second"
    shutil.copytree(finished_home / "store", first / "store")
    copy_migrated_home(first / "airflow")
    run_in_shell("airflow config get-value core executor", FMNIST_HOME=str(first))  # which writes airflow.cfg
    assert f"sqlite:///{first}/airflow/airflow.db" in (first / "airflow" / "airflow.cfg").read_text()
    before = read_tree(first)
    shutil.copytree(first, second)
    options = (
        "database sql_alchemy_conn",
        "logging base_log_folder",
        "logging dag_processor_child_process_log_directory",
    )
    program = f"from airflow.configuration import conf\nfor option in {options!r}: print(conf.get(*option.split()))"
    command = f'airflow dags test fmnist_watch >&2 && fmnist champion --json >&2 && python -c "{program}"'
    values = run_in_shell(command, FMNIST_HOME=str(second)).splitlines()
    assert values == [
        f"sqlite:///{second}/airflow/airflow.db",
        f"{second}/airflow/logs",
        f"{second}/airflow/logs/dag_processor",
    ]
    assert read_tree(first) == before
    assert (second / "airflow" / "airflow.db").read_bytes() != (first / "airflow" / "airflow.db").read_bytes()


def test_a_copied_cluster_does_not_control_the_original(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    supervisor = Supervisor(first)
    supervisor._make_socket_folder()
    with subprocess.Popen(["bash", "-c", "exec -a supervisord sleep 60"], cwd=first) as process:
        try:
            (first / "supervisord.pid").write_text(str(process.pid))
            shutil.copytree(first, second, symlinks=True)
            while not (daemon := supervisor.find_daemon()):  # until bash has replaced itself by it
                assert process.poll() is None
            assert daemon.pid == process.pid
            assert Supervisor(second).find_daemon() is None
            assert Supervisor(second).shut_down() is False
            Supervisor(second)._make_socket_folder()
            assert supervisor._find_socket().parent.is_dir()
            assert supervisor._find_socket() != Supervisor(second)._find_socket()
        finally:
            process.kill()
            supervisor._remove_socket_folder()
            Supervisor(second)._remove_socket_folder()


@pytest.mark.exhaustive
def test_a_copied_or_renamed_clone_gets_a_new_environment(tmp_path: Path) -> None:
    def set_up(clone: Path) -> str:
        result = subprocess.run(
            [clone / "include" / "setup"], env=make_clean_environment(), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        location = subprocess.run(
            [clone / ".venv" / "bin" / "python", "-c", "import fmnist_tasks; print(fmnist_tasks.__file__)"],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        assert location.stdout == f"{clone}/fmnist_tasks/__init__.py\n"
        assert str(clone) in (clone / ".venv" / "bin" / "fmnist").read_text()
        return result.stderr

    first = copy_project(tmp_path)
    set_up(first)
    second = Path(shutil.copytree(first, tmp_path / "second", symlinks=True))
    before = read_tree(first)
    assert "Creating .venv" in set_up(second)
    assert read_tree(first) == before
    third = second.rename(tmp_path / "third")
    assert "Creating .venv" in set_up(third)
    assert set_up(third) == ""
