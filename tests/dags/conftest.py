from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("airflow")
    subprocess.run(["airflow", "db", "migrate"], env=os.environ | {"AIRFLOW_HOME": str(home)}, check=True)
    return home
