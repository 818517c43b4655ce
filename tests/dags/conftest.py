from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.airflow_home import migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow home for all runs by `airflow dags test`."""
    return migrate(tmp_path_factory.mktemp("airflow") / "home")


@pytest.fixture
def own_migrated(tmp_path: Path) -> Path:
    """An Airflow home for one test alone, for those in which a scheduler acts on all that it finds."""
    return migrate(tmp_path / "airflow")
