"""The init job of Postgres: the users `airflow` and `results`, neither a superuser, each with a database of its name.

    python include/cluster/roles.py HOST:PORT

`airflow` owns Airflow's tables, `results` what Celery keeps of its tasks: a worker has only the latter. Reads the
superuser's secret, `POSTGRES_PASSWORD`, and those that the two are to have, `METADATA_PASSWORD` and `RESULTS_PASSWORD`.
A second call changes these passwords and nothing else. It also converts a database of the versions before, in which
`airflow` was the superuser.
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
PASSWORDS = {"airflow": "METADATA_PASSWORD", "results": "RESULTS_PASSWORD"}  # of each user
FORMER = "airflow_superuser"  # what `airflow` of the versions before is called now; nobody signs in as it

# In two goes, since a sequence of a table follows its table and refuses to go by itself.
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
        """A connection whose statements count at once, since databases cannot be created otherwise."""
        connection = psycopg2.connect(
            host=self.host, port=self.port, dbname=database, user=user, password=self.password
        )
        connection.autocommit = True
        return closing(connection)

    def create_superuser(self) -> None:
        """In a database of the versions before, create `postgres` and take its rights from `airflow`."""
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
    """The rows of a statement, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement.format(*values))
        return cursor.fetchall() if cursor.description else []


def encrypt(connection: Any, user: str, password: str) -> Literal:
    """What the server keeps of a password, so that no statement, and no log of statements, has the password itself."""
    return Literal(encrypt_password(password, user, connection, "scram-sha-256"))


def rename_former_superuser(connection: Any) -> None:
    """The first user of a server stays a superuser for ever, so it makes room for one of the same name."""
    if execute(connection, SQL("SELECT 1 FROM pg_roles WHERE rolname = 'airflow' AND rolsuper")):
        execute(connection, SQL("ALTER ROLE airflow RENAME TO {}"), Identifier(FORMER))
        execute(connection, SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL"), Identifier(FORMER))


def provide_user(connection: Any, user: str, password: str) -> None:
    """A user who may do nothing beyond a database, which only this user may enter."""
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
    """Let `airflow` own what the superuser has created in its database."""
    for kinds in ("'r', 'p', 'v', 'm'", "'S'"):
        for (name,) in execute(connection, SQL(RELATIONS_TO_TRANSFER.format(kinds=kinds))):
            execute(connection, SQL(f"ALTER TABLE {name} OWNER TO airflow"))
    for (name,) in execute(connection, SQL(TYPES_TO_TRANSFER)):
        execute(connection, SQL(f"ALTER TYPE {name} OWNER TO airflow"))


def main(address: str) -> None:
    """Make what is missing."""
    server = Server(address)
    server.create_superuser()
    with server.connect() as connection:
        rename_former_superuser(connection)
        for user, secret in PASSWORDS.items():
            provide_user(connection, user, read_secret(secret))
        # The scheduler reads results too, as `airflow`: its password is the only one that libpq finds there. What it
        # creates belongs to `results`.
        execute(connection, SQL("GRANT results TO airflow"))
        execute(connection, SQL("ALTER ROLE airflow IN DATABASE results SET role = results"))
    with server.connect("airflow") as connection:
        transfer_ownership(connection)
    print(f"{address}: users and databases {', '.join(PASSWORDS)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
