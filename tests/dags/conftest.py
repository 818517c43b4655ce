"""Airflow homes for the tests of the DAGs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.airflow_home import copy_migrated_home


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow home for all runs by `airflow dags test`."""
    return copy_migrated_home(tmp_path_factory.mktemp("airflow") / "home")


@pytest.fixture
def own_migrated_home(tmp_path: Path) -> Path:
    """An Airflow home for a single test, because its scheduler acts on every run in the database."""
    return copy_migrated_home(tmp_path / "airflow")
