"""Initialise Postgres: create the ordinary users `airflow` and `results`, each with a database of the same name.

    python include/cluster/roles.py HOST:PORT

`airflow` owns Airflow's tables, `results` the results that Celery stores. Workers know only the password of `results`.

Reads the superuser's password from `POSTGRES_PASSWORD`, and the new users' passwords from `METADATA_PASSWORD` and
`RESULTS_PASSWORD`. A later call only changes these passwords. The script also converts the database of an earlier
version, where `airflow` is the superuser.
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import psycopg2
from psycopg2.extensions import encrypt_password
from psycopg2.sql import SQL, Identifier, Literal

from fmnist_tasks.credentials import read_secret

SUPERUSER = "postgres"
PASSWORDS = {"airflow": "METADATA_PASSWORD", "results": "RESULTS_PASSWORD"}  # name of the secret of each user
FORMER = "airflow_superuser"  # new name of the superuser `airflow` of earlier versions; it cannot log in

# Tables first, then sequences: a table's own sequences change owner with it and cannot be transferred separately.
RELATIONS_TO_TRANSFER = """
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ({kinds}) AND relowner <> 'airflow'::regrole"""
TYPES_TO_TRANSFER = """
SELECT oid::regtype::text FROM pg_type
WHERE typnamespace = 'public'::regnamespace AND typtype IN ('d', 'e') AND typowner <> 'airflow'::regrole"""


class Server:
    """A Postgres server and its superuser."""

    def __init__(self, address: str) -> None:
        self.host, self.port = address.rsplit(":", 1)
        self.password = read_secret("POSTGRES_PASSWORD")

    def connect(self, database: str = "postgres", user: str = SUPERUSER) -> closing[Any]:
        """A connection in autocommit mode, without which databases cannot be created."""
        connection = psycopg2.connect(
            host=self.host, port=self.port, dbname=database, user=user, password=self.password
        )
        connection.autocommit = True
        return closing(connection)

    def create_superuser(self) -> None:
        """In the database of an earlier version, connect as the superuser `airflow` and create `postgres`."""
        try:
            with self.connect():
                return
        except psycopg2.OperationalError as error:
            try:
                former = self.connect("airflow", "airflow")
            except psycopg2.OperationalError:
                raise error from None
        with former as connection:
            create = SQL("CREATE ROLE {} SUPERUSER CREATEDB CREATEROLE LOGIN PASSWORD {}")
            execute(connection, create, Identifier(SUPERUSER), encrypt(connection, SUPERUSER, self.password))


def execute(connection: Any, statement: SQL, *values: Any) -> list[Any]:
    """Execute a statement; return its rows, if any."""
    with connection.cursor() as cursor:
        cursor.execute(statement.format(*values))
        return cursor.fetchall() if cursor.description else []


def encrypt(connection: Any, user: str, password: str) -> Literal:
    """The SCRAM verifier that the server stores. It keeps the password out of statements and their logs."""
    return Literal(encrypt_password(password, user, connection, "scram-sha-256"))


def rename_former_superuser(connection: Any) -> None:
    """Rename the superuser `airflow`, to free its name. The first user of a server always remains a superuser."""
    if execute(connection, SQL("SELECT 1 FROM pg_roles WHERE rolname = 'airflow' AND rolsuper")):
        execute(connection, SQL("ALTER ROLE airflow RENAME TO {}"), Identifier(FORMER))
        execute(connection, SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL"), Identifier(FORMER))


def create_user(connection: Any, user: str, password: str) -> None:
    """Create or update a user without rights beyond one database, to which only this user can connect."""
    name = Identifier(user)
    if not execute(connection, SQL("SELECT 1 FROM pg_roles WHERE rolname = {}"), Literal(user)):
        execute(connection, SQL("CREATE ROLE {}"), name)
    rights = SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD {}")
    execute(connection, rights, name, encrypt(connection, user, password))
    if not execute(connection, SQL("SELECT 1 FROM pg_database WHERE datname = {}"), Literal(user)):
        execute(connection, SQL("CREATE DATABASE {}"), name)
    execute(connection, SQL("ALTER DATABASE {} OWNER TO {}"), name, name)
    execute(connection, SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC"), name)


def transfer_ownership(connection: Any) -> None:
    """Make `airflow` the owner of everything that the superuser created in its database."""
    for kinds in ("'r', 'p', 'v', 'm'", "'S'"):
        for (name,) in execute(connection, SQL(RELATIONS_TO_TRANSFER.format(kinds=kinds))):
            execute(connection, SQL(f"ALTER TABLE {name} OWNER TO airflow"))
    for (name,) in execute(connection, SQL(TYPES_TO_TRANSFER)):
        execute(connection, SQL(f"ALTER TYPE {name} OWNER TO airflow"))


def main(address: str) -> None:
    """Create the missing users and databases, and set the passwords."""
    server = Server(address)
    server.create_superuser()
    with server.connect() as connection:
        rename_former_superuser(connection)
        for user, secret in PASSWORDS.items():
            create_user(connection, user, read_secret(secret))
        # The scheduler also reads results, as `airflow`, because libpq has only that user's password there. Objects
        # that it creates in this database belong to `results`.
        execute(connection, SQL("GRANT results TO airflow"))
        execute(connection, SQL("ALTER ROLE airflow IN DATABASE results SET role = results"))
    with server.connect("airflow") as connection:
        transfer_ownership(connection)
    print(f"{address}: users and databases {', '.join(PASSWORDS)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
