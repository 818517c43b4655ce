"""A fresh copy of the project passes the unit lane on every supported Python of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import Settings
from tests.support.fresh_copy import copy_project, fresh_shell

pytestmark = pytest.mark.exhaustive


def find_python(version: str) -> str | None:
    """A command that runs this Python: on the PATH, or among those of pyenv, whose commands there may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}*/bin/python{version}")))]
    found = (one for one in candidates if shutil.which(one))
    return next((one for one in found if not subprocess.run([one, "--version"], capture_output=True).returncode), None)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_unit_lane_passes(version: str, tmp_path: Path) -> None:
    if not (python := find_python(version)):
        pytest.skip(f"no Python {version} on this machine")
    copy = copy_project(tmp_path)
    data = {"FMNIST_DATA_DIR": str(Settings.from_environment().cache / "fashion-mnist")}
    ended = subprocess.run(
        ["make", "unit", f"PYTHON={python}"], cwd=copy, env=fresh_shell() | data, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-10_000:] + ended.stderr[-10_000:]
    assert f"Creating .venv with Python {version}" in ended.stderr
    assert " passed" in ended.stdout
    shutil.rmtree(copy)  # gigabytes
