from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def migrate(home: Path) -> Path:
    """A new Airflow home with an empty database."""
    subprocess.run(["airflow", "db", "migrate"], env=os.environ | {"AIRFLOW_HOME": str(home)}, check=True)
    return home


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow home for all runs by `airflow dags test`."""
    return migrate(tmp_path_factory.mktemp("airflow"))


@pytest.fixture
def own_migrated(tmp_path: Path) -> Path:
    """An Airflow home for one test alone, for those in which a scheduler acts on all that it finds."""
    return migrate(tmp_path / "airflow")
