"""Airflow connections, in whatever process asks: a task, a server of Airflow's, or a shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def find_connection(name: str) -> Any:
    """The Airflow connection of that name, or None if there is none."""
    from airflow.sdk.exceptions import AirflowException

    try:
        if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
            from airflow.sdk import Connection

            return Connection.get(name)
        # Outside a task the SDK's own class does not look into Airflow's database; this one does.
        from airflow.models.connection import Connection as Stored

        return Stored.get_connection_from_secrets(name)
    except AirflowException:
        return None


@contextmanager
def known_to_hooks(connection: Any) -> Iterator[None]:
    """Airflow's hooks find the connection, outside tasks as well: there they look into the environment only."""
    variable = f"AIRFLOW_CONN_{connection.conn_id.upper()}"
    before = os.environ.get(variable)
    os.environ[variable] = connection.get_uri()
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
