"""A fresh copy of the project passes the unit lane on every supported Python."""

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
    make = ["make", "unit", f"PYTHON={find_python(version)}"]
    ended = subprocess.run(make, cwd=copy, env=make_clean_environment() | data, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-10_000:] + ended.stderr[-10_000:]
    assert f"Creating .venv with Python {version}" in ended.stderr
    assert " passed" in ended.stdout
    shutil.rmtree(copy)  # gigabytes
