"""The job `roles` on a real Postgres, which was one of the versions before: `test_cluster.py` begins with a new one."""

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
    """A server, and the job that prepares it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, user: str, database: str, statement: str, password: str = "") -> list[tuple[object, ...]]:
        given = {"user": user, "password": password or PASSWORDS[user]}
        with closing(psycopg2.connect(host="127.0.0.1", port=self.port, dbname=database, **given)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def prepare(self, **passwords: str) -> str:
        names = {"postgres": "POSTGRES_PASSWORD", "airflow": "METADATA_PASSWORD", "results": "RESULTS_PASSWORD"}
        given = {names[user]: password for user, password in (PASSWORDS | passwords).items()}
        command = [sys.executable, PROJECT / "include/cluster/roles.py", f"127.0.0.1:{self.port}"]
        done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def run_postgres(superuser: str) -> Iterator[Postgres]:
    """A new server whose first user has this name."""
    require(POSTGRES)
    folder, server = Path(tempfile.mkdtemp(prefix="fmnist-postgres-")), Postgres(reserve_port())
    folder.chmod(0o711)  # Postgres, another user, has to pass
    given = {"POSTGRES_USER": superuser, "POSTGRES_PASSWORD": PASSWORDS["postgres"]}
    command = [PROJECT / "tests/support/cluster/postgres", f"127.0.0.1:{server.port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | given, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(psycopg2.OperationalError):
            return bool(server.ask(superuser, "postgres", "SELECT 1", PASSWORDS["postgres"]))
        return False

    try:
        wait_until(answers, every=0.1)
        yield server
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server whose superuser was `airflow`, with tables in its database; it was converted, and prepared again."""
    with run_postgres("airflow") as server:
        was = PASSWORDS["postgres"]
        server.ask("airflow", "postgres", "CREATE DATABASE airflow", was)
        for statement in (
            "CREATE TYPE state AS ENUM ('queued')",
            "CREATE TABLE connection (id serial PRIMARY KEY, state state, password text)",
            "CREATE SEQUENCE task_id_sequence",
            "CREATE VIEW connections AS SELECT id FROM connection",
            "INSERT INTO connection (state) VALUES ('queued')",
        ):
            server.ask("airflow", "airflow", statement, was)
        server.prepare()
        server.prepare()
        yield server


@pytest.mark.parametrize("user", ["airflow", "results"])
def test_a_user_is_no_superuser_and_runs_no_program(postgres: Postgres, user: str) -> None:
    rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
    assert postgres.ask(user, user, f"{rights} WHERE rolname = current_user") == [(False,) * 5]
    for statement in ("COPY (SELECT 1) TO PROGRAM 'cat'", "CREATE TEMP TABLE t (x text); COPY t FROM PROGRAM 'id'"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            postgres.ask(user, user, statement)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        postgres.ask(user, user, "SELECT rolpassword FROM pg_authid")
    stored = dict(postgres.ask("postgres", "postgres", "SELECT rolname, rolpassword FROM pg_authid"))
    assert str(stored[user]).startswith("SCRAM-SHA-256$")


def test_a_worker_cannot_read_the_tables_of_airflow(postgres: Postgres) -> None:
    with pytest.raises(psycopg2.OperationalError, match='permission denied for database "airflow"'):
        postgres.ask("results", "airflow", "SELECT password FROM connection")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        postgres.ask("airflow", "airflow", "SELECT password FROM connection", PASSWORDS["results"])
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        postgres.ask("results", "results", "SET ROLE airflow")


def test_a_password_file_serves_where_the_password_is_empty(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metadata"
    file.write_text(f"127.0.0.1:{postgres.port}:*:airflow:{PASSWORDS['airflow']}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSWORD", "")
    monkeypatch.setenv("PGPASSFILE", str(file))
    psycopg2.connect(host="127.0.0.1", port=postgres.port, dbname="results", user="airflow").close()


def test_scheduler_and_workers_share_the_results_whoever_creates_their_table(postgres: Postgres) -> None:
    postgres.ask("airflow", "results", "CREATE TABLE celery_taskmeta (id serial)")
    postgres.ask("results", "results", "INSERT INTO celery_taskmeta DEFAULT VALUES")
    assert postgres.ask("airflow", "results", "SELECT id FROM celery_taskmeta") == [(1,)]


def test_a_changed_password_is_taken_up_and_kept_out_of_the_output(postgres: Postgres) -> None:
    said = postgres.prepare(results="another one")
    assert said == f"127.0.0.1:{postgres.port}: users and databases airflow, results\n"
    assert postgres.ask("results", "results", "SELECT 1", "another one") == [(1,)]
    postgres.prepare()


def test_a_database_of_the_versions_before_is_converted(postgres: Postgres) -> None:
    superusers = "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolsuper ORDER BY rolname"
    assert postgres.ask("postgres", "postgres", superusers) == [("airflow_superuser", False), ("postgres", True)]
    for statement in (  # what migrations do: only the owner may
        "ALTER TABLE connection ADD COLUMN host text",
        "ALTER TYPE state ADD VALUE 'running'",
        "ALTER SEQUENCE task_id_sequence RESTART",
        "DROP VIEW connections",
    ):
        postgres.ask("airflow", "airflow", statement)
    assert postgres.ask("airflow", "airflow", "SELECT id, state FROM connection") == [(1, "queued")]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        postgres.ask("airflow", "airflow", "SELECT 1", PASSWORDS["postgres"])


def test_a_superuser_password_that_is_wrong_is_said(postgres: Postgres) -> None:
    with pytest.raises(AssertionError, match='password authentication failed for user "postgres"'):
        postgres.prepare(postgres="wrong")
