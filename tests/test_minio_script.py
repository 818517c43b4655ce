"""`include/minio`: where the server comes from, and the main job against it."""

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
SERVE = ("server", "127.0.0.1:9", "127.0.0.1:8")
# What the scripts need, and no server.
TOOLS = ("sh", "bash", "dirname", "mkdir", "mktemp", "mv", "cp", "rm", "cat", "chmod", "grep")
FILTER = "# refuseForgedUploads"  # as a server that has it
SAYS = f'echo "${{0##*/}} $*" {FILTER}'
# A Go whose modules are in a folder beside it, and whose build is what it is told to compile.
BUILDS = f"""
echo "$*" >>"${{0%/*}}/called"
case $1 in
  env) echo "${{0%/*}}/modules" ;;
  build)
    echo '#!/bin/bash' >"$4"
    echo '{SAYS}' >>"$4"
    grep '^func refuse' source/cmd/fmnist-filter.go | sed 's/^/# /' >>"$4"
    chmod +x "$4" ;;
esac
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder that is the whole PATH, apart from the project's own environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def stand_in(file: Path, text: str = SAYS) -> Path:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
    return file


def served(path: Path, project: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess[str]:
    home = path.parent / "home"
    return subprocess.run(
        [str(project / "include" / "minio"), *SERVE, str(home / "data")],
        env={"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )


def provide_go(path: Path) -> Path:
    """A Go that tells what it was called for."""
    (path / "sed").symlink_to(shutil.which("sed") or "")
    source = path / "modules" / "github.com" / "minio" / f"minio@{VERSION}"
    (source / "cmd").mkdir(parents=True)
    for name in ("go.mod", "go.sum"):
        (source / name).touch()
    stand_in(path / "go", BUILDS)
    return path / "called"


def test_the_server_is_the_named_one_or_built_with_the_filter_once(path: Path) -> None:
    nowhere = served(path)
    assert nowhere.returncode == 3
    assert (
        "no server: MINIO names none, and Go 1.24 or newer, which builds one, was not found or failed" in nowhere.stderr
    )

    called = provide_go(path)
    addresses = "--address 127.0.0.1:9 --console-address 127.0.0.1:8"
    for _ in range(2):
        ended = served(path)
        assert re.search(rf"^minio server --quiet {addresses} \S+/data$", ended.stdout, re.MULTILINE), ended.stderr
    calls = called.read_text().splitlines()
    assert calls[0] == f"mod download github.com/minio/minio@{VERSION}"
    assert [call.split()[0] for call in calls] == ["mod", "env", "mod", "build"]  # built once, then kept
    (built,) = (path.parent / "home" / "cache").iterdir()
    assert "func refuseForgedUploads" in (built / "minio").read_text()

    assert served(path, MINIO=str(stand_in(path.parent / "named"))).stdout.startswith("named server")


def test_a_server_without_the_filter_is_not_started(path: Path) -> None:
    stand_in(path / "minio", "echo started")
    assert served(path).returncode == 3  # one on the PATH is somebody else's
    named = served(path, MINIO=str(path / "minio"))
    assert (named.returncode, named.stdout) == (3, "")
    assert (
        f"{path}/minio does not contain the filter against forged uploads; build one with include/servers/build-minio"
        in (named.stderr)
    )


def test_another_filter_is_another_server(path: Path, tmp_path: Path) -> None:
    called = provide_go(path)
    copy = tmp_path / "copy"
    (copy / "include").mkdir(parents=True)
    (copy / ".venv").symlink_to(PROJECT / ".venv")
    for name in ("minio", "activate", "follow-home", "servers"):
        source, target = INCLUDE / name, copy / "include" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    assert served(path, copy).returncode == 0
    with (copy / "include" / "servers" / "filter.go").open("a") as file:
        file.write("// changed\n")
    assert served(path, copy).returncode == 0
    assert sum(call.startswith("build") for call in called.read_text().splitlines()) == 2
    assert len(list((path.parent / "home" / "cache").iterdir())) == 1  # the other one is gone


def test_settings_of_another_server_do_not_reach_this_one(path: Path) -> None:
    foreign = {"MINIO_VOLUMES": "/another", "MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "secret"}
    named = stand_in(path.parent / "named", f'echo "$MINIO_VOLUMES,$MINIO_ROOT_USER,$MINIO_ROOT_PASSWORD" {FILTER}')
    assert served(path, MINIO=str(named), **foreign).stdout == ",root,secret\n"


def test_a_build_that_fails_starts_nothing(path: Path) -> None:
    stand_in(path / "go", "echo 'go: too old' >&2; exit 1")
    failed = served(path)
    assert failed.returncode == 3
    assert failed.stderr.count("go: too old") == 1
    assert not list((path.parent / "home").glob("cache/*"))


def test_the_development_server_tells_its_address_and_keeps_what_it_generated(path: Path) -> None:
    home = path.parent / "home"
    environment = {"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), "MINIO_PORT": str(reserve_port())}
    environment |= {
        "MINIO": str(stand_in(path.parent / "named", f'echo "$MINIO_ROOT_USER $MINIO_ROOT_PASSWORD" {FILTER}'))
    }
    passwords = []
    for _ in range(2):
        ended = subprocess.run([INCLUDE / "minio", "develop"], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f"address   http://127.0.0.1:{environment['MINIO_PORT']}\n" in ended.stdout
        passwords += re.findall(r"user +(\w{19})\n +password +(\S{20,})\n", ended.stdout)
        assert ended.stdout.endswith(" ".join(passwords[-1]) + "\n")  # what the server got
    assert len(passwords) == 2
    assert passwords[0] == passwords[1]
    assert (home / "minio" / "credentials").stat().st_mode & 0o777 == 0o600


@pytest.mark.exhaustive
def test_the_main_job_starts_a_server_keeps_its_secret_and_stops_it(
    pipeline: Pipeline, minio_server: MinioServer
) -> None:
    assert minio_server.process
    binary = Path(f"/proc/{minio_server.process.pid}/exe").resolve()
    port = reserve_port()
    settings = {"MINIO": str(binary), "MINIO_PORT": str(port), "MINIO_CONSOLE_PORT": str(reserve_port())}
    home = {"FMNIST_STORE": "", "AIRFLOW_HOME": str(pipeline.home / "airflow")}
    environment = os.environ | pipeline.environment | settings | home
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    ended = subprocess.run(
        [str(INCLUDE / "minio"), "run", json.dumps({"profile": "quick"})],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"http://127.0.0.1:{port}/fmnist/releases/" in ended.stdout
    credentials = pipeline.home / "minio" / "credentials"
    assert credentials.stat().st_mode & 0o777 == 0o600
    (secret,) = re.findall(r"MINIO_ROOT_PASSWORD=(\S+)", credentials.read_text())
    assert len(secret) >= 20
    assert secret not in ended.stdout + ended.stderr
    assert not accepts_connections(port)  # it was stopped
    assert list((pipeline.home / "minio" / "data" / "fmnist" / "champion").iterdir())
