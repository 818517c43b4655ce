"""Airflow connections, from any process: a task, one of Airflow's servers, or a shell."""

from __future__ import annotations

import sys
from typing import Any


def find_connection(name: str) -> Any:
    """Return the Airflow connection of that name, or None if it does not exist."""
    from airflow.sdk.exceptions import AirflowException

    try:
        if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
            from airflow.sdk import Connection

            return Connection.get(name)
        # Outside a task, the SDK's class does not read Airflow's database; this one does.
        from airflow.models.connection import Connection as StoredConnection

        return StoredConnection.get_connection_from_secrets(name)
    except AirflowException:
        return None
