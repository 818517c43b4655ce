"""A fresh copy of the project passes the unit lane on every supported version of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import Settings
from tests.support.fresh_copy import copy_project, make_clean_environment
from tests.support.requirements import PYTHONS, find_python, require

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("version", PYTHONS)
def test_the_unit_lane_passes(version: str, tmp_path: Path) -> None:
    require(PYTHONS[version])
    copy = copy_project(tmp_path)
    data = {"FMNIST_DATA_DIR": str(Settings.from_environment().cache / "fashion-mnist")}
    command = ["make", "unit", f"PYTHON={find_python(version)}"]
    result = subprocess.run(command, cwd=copy, env=make_clean_environment() | data, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-10_000:]
    assert f"Creating .venv with Python {version}" in result.stderr
    assert " passed" in result.stdout
    shutil.rmtree(copy)  # gigabytes
