"""`include/minio`: where the server comes from, and the main job against it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import INCLUDE
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port

SERVE = ("server", "127.0.0.1:9", "127.0.0.1:8")
TOOLS = ("bash", "dirname", "mkdir", "mv", "rm", "cat", "id", "chmod")  # what the script needs, and no server
SAYS = 'echo "${0##*/} $*"'
BUILDS = f"""
echo "$*" >>"${{0%/*}}/built"
mkdir -p "$GOBIN"
echo '#!/bin/bash' >"$GOBIN/minio"
echo '{SAYS}' >>"$GOBIN/minio"
chmod +x "$GOBIN/minio"
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


def served(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    home = path.parent / "home"
    return subprocess.run(
        [str(INCLUDE / "minio"), *SERVE, str(home / "data")],
        env={"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )


def test_the_server_comes_from_the_first_that_there_is(path: Path) -> None:
    nowhere = served(path)
    assert nowhere.returncode == 3
    assert "no server: MINIO names none, no minio on the PATH, no Go 1.24 or newer that builds it" in nowhere.stderr

    stand_in(path / "docker")
    assert re.match(r"docker run --rm --user \d+:\d+ --publish 127.0.0.1:9:9000 .* quay.io/minio", served(path).stdout)

    stand_in(path / "go", BUILDS)
    addresses = "--address 127.0.0.1:9 --console-address 127.0.0.1:8"
    for _ in range(2):
        assert re.search(rf"^minio server --quiet {addresses} \S+/data$", served(path).stdout, re.MULTILINE)
    (line,) = (path / "built").read_text().splitlines()  # built once, then kept
    assert line == "install github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"

    (path / "minio").symlink_to(stand_in(path.parent / "installed", 'echo "installed $*"'))
    assert served(path).stdout.startswith("installed server")

    assert served(path, MINIO=str(stand_in(path.parent / "named"))).stdout.startswith("named server")


def test_settings_of_another_server_do_not_reach_this_one(path: Path) -> None:
    foreign = {"MINIO_VOLUMES": "/another", "MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "secret"}
    named = stand_in(path.parent / "named", 'echo "$MINIO_VOLUMES,$MINIO_ROOT_USER,$MINIO_ROOT_PASSWORD"')
    assert served(path, MINIO=str(named), **foreign).stdout == ",root,secret\n"


def test_a_build_that_fails_goes_on_to_the_next(path: Path) -> None:
    stand_in(path / "go", "echo 'go: too old' >&2; exit 1")
    failed = served(path)
    assert failed.returncode == 3
    assert failed.stderr.count("go: too old") == 2  # by itself, and by the version of Go that is known to build it


def test_the_development_server_tells_its_address_and_keeps_its_generated_password(path: Path) -> None:
    home = path.parent / "home"
    environment = {"PATH": str(path), "HOME": str(home), "FMNIST_HOME": str(home), "MINIO_PORT": str(reserve_port())}
    environment |= {"MINIO": str(stand_in(path.parent / "named", 'echo "$MINIO_ROOT_USER $MINIO_ROOT_PASSWORD"'))}
    passwords = []
    for _ in range(2):
        ended = subprocess.run([INCLUDE / "minio", "develop"], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f"address   http://127.0.0.1:{environment['MINIO_PORT']}\n" in ended.stdout
        passwords += re.findall(r"user +fmnist\n +password +(\S{20,})\n", ended.stdout)
        assert ended.stdout.endswith(f"fmnist {passwords[-1]}\n")  # what the server got
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
