"""Airflow's command line inside the test process. Airflow is imported only once, so a run takes seconds.

tests/conftest.py provides its home and its database.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmnist_tasks.settings import DAG_ID


@dataclass(frozen=True)
class AirflowInProcess:
    """Airflow's command line. A call runs a command."""

    output: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    @property
    def home(self) -> Path:
        """Folder of the database and the logs."""
        return Path(os.environ["AIRFLOW_HOME"])

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run one command, and return its exit code and its output, standard error included."""
        from airflow.__main__ import main
        from airflow.logging_config import configure_logging

        self.output.readouterr()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        code: int | str | None = 0
        with self.patch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of Airflow itself, which pytest would turn into errors
            patch.setattr(sys, "argv", ["airflow", *arguments])
            # For each command, since the streams of the previous test are closed. Airflow's functions are untyped.
            configure_logging()  # type: ignore[no-untyped-call]
            try:
                main()  # type: ignore[no-untyped-call]
            except SystemExit as error:
                code = error.code
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
        output = "".join(self.output.readouterr())
        return (code, output) if isinstance(code, int) else (int(bool(code)), f"{output}{code or ''}")

    def test_dag(self, dag_id: str = DAG_ID, **conf: Any) -> tuple[int, str]:
        """Run a DAG with these parameters by `airflow dags test`."""
        return self("dags", "test", dag_id, "--conf", json.dumps(conf))

    def query_database(self, sql: str) -> list[tuple[Any, ...]]:
        """Execute a query on Airflow's database and return its rows."""
        with sqlite3.connect(self.home / "airflow.db") as database:
            return database.execute(sql).fetchall()
