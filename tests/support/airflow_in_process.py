"""Airflow's command line in the process of the tests: imported once, so that a run takes seconds.

Its home and database are those of this process; tests/conftest.py provides them.
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
    """`airflow` commands, with what they print."""

    output: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    @property
    def home(self) -> Path:
        """The folder of database and logs."""
        return Path(os.environ["AIRFLOW_HOME"])

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run one command; its exit code, and all that it printed."""
        from airflow.__main__ import main
        from airflow.logging_config import configure_logging

        self.output.readouterr()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        code: int | str | None = 0
        with self.patch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Airflow's own do not fail its command line either
            patch.setattr(sys, "argv", ["airflow", *arguments])
            # Again: the test before this one has closed what it printed to. Airflow's own functions are untyped.
            configure_logging()  # type: ignore[no-untyped-call]
            try:
                main()  # type: ignore[no-untyped-call]
            except SystemExit as ended:
                code = ended.code
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
        printed = "".join(self.output.readouterr())
        return (code, printed) if isinstance(code, int) else (int(bool(code)), f"{printed}{code or ''}")

    def test_dag(self, dag_id: str = DAG_ID, **conf: Any) -> tuple[int, str]:
        """Run a DAG by `airflow dags test`."""
        return self("dags", "test", dag_id, "--conf", json.dumps(conf))

    def query_database(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of Airflow's database."""
        with sqlite3.connect(self.home / "airflow.db") as database:
            return database.execute(sql).fetchall()
