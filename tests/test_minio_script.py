"""`include/minio`: the choice and the build of a server, and a run on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import INCLUDE, PROJECT
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port

(VERSION,) = re.findall(r"^version=(\S+)", (INCLUDE / "servers" / "build-minio").read_text(), re.MULTILINE)
SERVER_ARGUMENTS = ("server", "127.0.0.1:9", "127.0.0.1:8")
# Everything that the scripts need, except a server.
TOOLS = ("sh", "bash", "dirname", "mkdir", "mktemp", "mv", "cp", "rm", "cat", "chmod", "grep")
FILTER_MARK = "# refuseForgedUploads"  # by which the scripts recognise a server with the filter
PRINT_ARGUMENTS = f'echo "${{0##*/}} $*" {FILTER_MARK}'
# Simulates Go: its modules are in a folder beside it, and `go build` writes a script with the filter's functions.
GO_STUB = f"""
echo "$*" >>"${{0%/*}}/called"
case $1 in
  env) echo "${{0%/*}}/modules" ;;
  build)
    echo '#!/bin/bash' >"$4"
    echo '{PRINT_ARGUMENTS}' >>"$4"
    grep '^func refuse' source/cmd/fmnist-filter.go | sed 's/^/# /' >>"$4"
    chmod +x "$4" ;;
esac
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder that is the whole PATH, except for the project's environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        program = shutil.which(tool)
        assert program
        (folder / tool).symlink_to(program)
    return folder


def write_program(file: Path, text: str = PRINT_ARGUMENTS) -> Path:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
    return file


def run_server(path: Path, project: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
    home = path.parent / "home"
    return subprocess.run(
        [str(project / "include" / "minio"), *SERVER_ARGUMENTS, str(home / "data")],
        env={"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )


def provide_go(path: Path) -> Path:
    """Put a stub of Go on the PATH and return the file to which it logs its calls."""
    (path / "sed").symlink_to(shutil.which("sed") or "")
    source = path / "modules" / "github.com" / "minio" / f"minio@{VERSION}"
    (source / "cmd").mkdir(parents=True)
    for name in ("go.mod", "go.sum"):
        (source / name).touch()
    write_program(path / "go", GO_STUB)
    return path / "called"


def test_the_server_is_the_one_in_the_environment_or_built_once_with_the_filter(path: Path) -> None:
    missing = run_server(path)
    assert missing.returncode == 3
    assert "cannot find or build a server; install Go 1.24 or newer, or set MINIO to a binary that" in missing.stderr

    call_log = provide_go(path)
    addresses = "--address 127.0.0.1:9 --console-address 127.0.0.1:8"
    for _ in range(2):
        result = run_server(path)
        assert re.search(rf"^minio server --quiet {addresses} \S+/data$", result.stdout, re.MULTILINE), result.stderr
    calls = call_log.read_text().splitlines()
    assert calls[0] == f"mod download github.com/minio/minio@{VERSION}"
    assert [call.split()[0] for call in calls] == ["mod", "env", "mod", "build"]  # built once, then cached
    (folder,) = (path.parent / "home" / "cache").iterdir()
    assert "func refuseForgedUploads" in (folder / "minio").read_text()

    assert run_server(path, MINIO=str(write_program(path.parent / "named"))).stdout.startswith("named server")


def test_a_server_without_the_filter_is_not_started(path: Path) -> None:
    write_program(path / "minio", "echo started")
    assert run_server(path).returncode == 3  # a server on the PATH is not one that the scripts built
    result = run_server(path, MINIO=str(path / "minio"))
    assert (result.returncode, result.stdout) == (3, "")
    assert (
        f"{path}/minio does not contain the filter against forged uploads; build one with include/servers/build-minio"
        in result.stderr
    )


def test_a_changed_filter_builds_another_server(path: Path, tmp_path: Path) -> None:
    call_log = provide_go(path)
    copy = tmp_path / "copy"
    (copy / "include").mkdir(parents=True)
    (copy / ".venv").symlink_to(PROJECT / ".venv")
    for name in ("minio", "activate", "follow-home", "servers"):
        source, target = INCLUDE / name, copy / "include" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    assert run_server(path, copy).returncode == 0
    with (copy / "include" / "servers" / "filter.go").open("a") as file:
        file.write("// changed\n")
    assert run_server(path, copy).returncode == 0
    assert sum(call.startswith("build") for call in call_log.read_text().splitlines()) == 2
    assert len(list((path.parent / "home" / "cache").iterdir())) == 1  # the earlier server is deleted


def test_settings_of_another_server_do_not_reach_this_one(path: Path) -> None:
    foreign = {"MINIO_VOLUMES": "/another", "MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "secret"}
    text = f'echo "$MINIO_VOLUMES,$MINIO_ROOT_USER,$MINIO_ROOT_PASSWORD" {FILTER_MARK}'
    program = write_program(path.parent / "named", text)
    assert run_server(path, MINIO=str(program), **foreign).stdout == ",root,secret\n"


def test_no_server_starts_if_the_build_fails(path: Path) -> None:
    write_program(path / "go", "echo 'go: too old' >&2; exit 1")
    result = run_server(path)
    assert result.returncode == 3
    assert result.stderr.count("go: too old") == 1
    assert not list((path.parent / "home").glob("cache/*"))


def test_the_development_server_prints_its_address_and_stores_its_credentials(path: Path) -> None:
    home = path.parent / "home"
    environment = {"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), "MINIO_PORT": str(reserve_port())}
    text = f'echo "$MINIO_ROOT_USER $MINIO_ROOT_PASSWORD" {FILTER_MARK}'
    environment["MINIO"] = str(write_program(path.parent / "named", text))
    credentials = []
    for _ in range(2):
        result = subprocess.run([INCLUDE / "minio", "develop"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert f"address   http://127.0.0.1:{environment['MINIO_PORT']}\n" in result.stdout
        credentials += re.findall(r"user +(\w{19})\n +password +(\S{20,})\n", result.stdout)
        assert result.stdout.endswith(" ".join(credentials[-1]) + "\n")  # printed by the server, from its environment
    assert len(credentials) == 2
    assert credentials[0] == credentials[1]
    assert (home / "minio" / "credentials").stat().st_mode & 0o777 == 0o600


@pytest.mark.exhaustive
def test_run_minio_starts_and_stops_a_server_without_printing_its_secret(
    pipeline: Pipeline, minio_server: MinioServer
) -> None:
    assert minio_server.process
    binary = Path(f"/proc/{minio_server.process.pid}/exe").resolve()
    port = reserve_port()
    settings = {"MINIO": str(binary), "MINIO_PORT": str(port), "MINIO_CONSOLE_PORT": str(reserve_port())}
    home = {"FMNIST_STORE": "", "AIRFLOW_HOME": str(pipeline.home / "airflow")}
    environment = os.environ | pipeline.environment | settings | home
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    result = subprocess.run(
        [str(INCLUDE / "minio"), "run", json.dumps({"profile": "quick"})],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"http://127.0.0.1:{port}/fmnist/releases/" in result.stdout
    credentials = pipeline.home / "minio" / "credentials"
    assert credentials.stat().st_mode & 0o777 == 0o600
    (secret,) = re.findall(r"MINIO_ROOT_PASSWORD=(\S+)", credentials.read_text())
    assert len(secret) >= 20
    assert secret not in result.stdout + result.stderr
    assert not accepts_connections(port)
    assert list((pipeline.home / "minio" / "data" / "fmnist" / "champion").iterdir())
