"""The job `roles` on a Postgres of an earlier version. `test_cluster.py` covers a new Postgres."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.ports import reserve_port
from tests.support.requirements import POSTGRES, require

pytestmark = pytest.mark.integration
PASSWORDS = {"postgres": "of the superuser", "airflow": "of Airflow's tables", "results": "of the results"}


class Postgres:
    """A Postgres server on a loopback port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def execute(self, user: str, database: str, statement: str, password: str = "") -> list[tuple[object, ...]]:
        """Execute one SQL statement and return its rows."""
        login = {"user": user, "password": password or PASSWORDS[user]}
        with closing(psycopg2.connect(host="127.0.0.1", port=self.port, dbname=database, **login)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def run_roles_job(self, **passwords: str) -> str:
        """Run the job `roles`, with other passwords for these users, and return its output."""
        names = {"postgres": "POSTGRES_PASSWORD", "airflow": "METADATA_PASSWORD", "results": "RESULTS_PASSWORD"}
        environment = {names[user]: password for user, password in (PASSWORDS | passwords).items()}
        command = [sys.executable, PROJECT / "include/cluster/roles.py", f"127.0.0.1:{self.port}"]
        result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout


@contextmanager
def run_postgres(superuser: str) -> Iterator[Postgres]:
    """Run a new server with a superuser of this name."""
    require(POSTGRES)
    folder, server = Path(tempfile.mkdtemp(prefix="fmnist-postgres-")), Postgres(reserve_port())
    folder.chmod(0o711)  # Postgres runs as another user and has to traverse it
    environment = {"POSTGRES_USER": superuser, "POSTGRES_PASSWORD": PASSWORDS["postgres"]}
    command = [PROJECT / "tests/support/cluster/postgres", f"127.0.0.1:{server.port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(psycopg2.OperationalError):
            return bool(server.execute(superuser, "postgres", "SELECT 1", PASSWORDS["postgres"]))
        return False

    try:
        wait_until(is_ready, every=0.1)
        yield server
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with the superuser `airflow` and tables in its database, on which the job `roles` has run twice."""
    with run_postgres("airflow") as server:
        old_password = PASSWORDS["postgres"]
        server.execute("airflow", "postgres", "CREATE DATABASE airflow", old_password)
        for statement in (
            "CREATE TYPE state AS ENUM ('queued')",
            "CREATE TABLE connection (id serial PRIMARY KEY, state state, password text)",
            "CREATE SEQUENCE task_id_sequence",
            "CREATE VIEW connections AS SELECT id FROM connection",
            "INSERT INTO connection (state) VALUES ('queued')",
        ):
            server.execute("airflow", "airflow", statement, old_password)
        server.run_roles_job()
        server.run_roles_job()
        yield server


@pytest.mark.parametrize("user", ["airflow", "results"])
def test_a_user_is_not_a_superuser_and_cannot_run_programs(postgres: Postgres, user: str) -> None:
    rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
    assert postgres.execute(user, user, f"{rights} WHERE rolname = current_user") == [(False,) * 5]
    for statement in ("COPY (SELECT 1) TO PROGRAM 'cat'", "CREATE TEMP TABLE t (x text); COPY t FROM PROGRAM 'id'"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            postgres.execute(user, user, statement)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        postgres.execute(user, user, "SELECT rolpassword FROM pg_authid")
    stored = dict(postgres.execute("postgres", "postgres", "SELECT rolname, rolpassword FROM pg_authid"))
    assert str(stored[user]).startswith("SCRAM-SHA-256$")


def test_a_worker_cannot_read_the_tables_of_airflow(postgres: Postgres) -> None:
    with pytest.raises(psycopg2.OperationalError, match='permission denied for database "airflow"'):
        postgres.execute("results", "airflow", "SELECT password FROM connection")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        postgres.execute("airflow", "airflow", "SELECT password FROM connection", PASSWORDS["results"])
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        postgres.execute("results", "results", "SET ROLE airflow")


def test_a_password_file_is_used_if_the_password_is_empty(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metadata"
    file.write_text(f"127.0.0.1:{postgres.port}:*:airflow:{PASSWORDS['airflow']}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSWORD", "")
    monkeypatch.setenv("PGPASSFILE", str(file))
    psycopg2.connect(host="127.0.0.1", port=postgres.port, dbname="results", user="airflow").close()


def test_scheduler_and_workers_share_the_results_table_whoever_creates_it(postgres: Postgres) -> None:
    postgres.execute("airflow", "results", "CREATE TABLE celery_taskmeta (id serial)")
    postgres.execute("results", "results", "INSERT INTO celery_taskmeta DEFAULT VALUES")
    assert postgres.execute("airflow", "results", "SELECT id FROM celery_taskmeta") == [(1,)]


def test_a_changed_password_takes_effect_and_is_not_printed(postgres: Postgres) -> None:
    output = postgres.run_roles_job(results="another one")
    assert output == f"127.0.0.1:{postgres.port}: users and databases airflow, results\n"
    assert postgres.execute("results", "results", "SELECT 1", "another one") == [(1,)]
    postgres.run_roles_job()


def test_a_database_of_an_earlier_version_is_converted(postgres: Postgres) -> None:
    superusers = "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolsuper ORDER BY rolname"
    assert postgres.execute("postgres", "postgres", superusers) == [("airflow_superuser", False), ("postgres", True)]
    for statement in (  # migrations do this, and only the owner may
        "ALTER TABLE connection ADD COLUMN host text",
        "ALTER TYPE state ADD VALUE 'running'",
        "ALTER SEQUENCE task_id_sequence RESTART",
        "DROP VIEW connections",
    ):
        postgres.execute("airflow", "airflow", statement)
    assert postgres.execute("airflow", "airflow", "SELECT id, state FROM connection") == [(1, "queued")]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        postgres.execute("airflow", "airflow", "SELECT 1", PASSWORDS["postgres"])


def test_a_wrong_superuser_password_is_reported(postgres: Postgres) -> None:
    with pytest.raises(AssertionError, match='password authentication failed for user "postgres"'):
        postgres.run_roles_job(postgres="wrong")
