"""The wheel and a copy of the DAGs are enough for a run: a new environment, outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tasks.provenance import describe_code
from fmnist_tasks.settings import PROJECT
from tests.support.fresh_copy import make_clean_environment
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program folder of an environment with the locked packages and the wheel, without other project files."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=PROJECT, check=True)
    (wheel,) = folder.glob("*.whl")
    uv, environment = Path(sys.executable).with_name("uv"), {**os.environ, "VIRTUAL_ENV": str(folder / "venv")}
    sync = ["pip", "sync", "--quiet", "--system-certs", "--require-hashes", PROJECT / "requirements.txt"]
    for command in (
        ["venv", "--quiet", "--python", sys.executable, folder / "venv"],
        sync,
        ["pip", "install", "--quiet", "--offline", "--no-deps", wheel],
    ):
        subprocess.run([uv, *command], env=environment, check=True)
    return folder / "venv" / "bin"


def run(installed: Path, folder: Path, pipeline: Pipeline, *command: str) -> str:
    """Run a program of that environment in the folder with the DAGs, and return its standard output."""
    environment = make_clean_environment() | {
        "PATH": f"{installed}:{os.environ['PATH']}",
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "FMNIST_DATASET": pipeline.environment["FMNIST_DATASET"],
        "FMNIST_DATA_DIR": pipeline.environment["FMNIST_DATA_DIR"],
    }
    result = subprocess.run(
        [installed / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_run_needs_only_the_wheel_and_the_dags(installed: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    run(installed, tmp_path, pipeline, "airflow", "db", "migrate")
    plugins = json.loads(run(installed, tmp_path, pipeline, "airflow", "plugins", "--output", "json"))
    assert "fmnist_registry" in {plugin["name"] for plugin in plugins}
    run(installed, tmp_path, pipeline, "airflow", "dags", "test", "fmnist_retrain", "--conf", '{"profile": "quick"}')

    champion = json.loads(run(installed, tmp_path, pipeline, "fmnist", "champion", "--json"))
    store = tmp_path / "airflow" / "fmnist" / "store"  # the default without a checkout
    manifest = json.loads((store / "releases" / champion["version"] / "manifest.json").read_text())
    assert manifest["code"]["digest"] == describe_code().digest
    assert json.loads(run(installed, tmp_path, pipeline, "fmnist", "verify", champion["version"], "--json"))["intact"]
    program = "import fmnist_tasks; print(fmnist_tasks.__file__)"
    assert str(installed.parent) in run(installed, tmp_path, pipeline, "python", "-c", program)
