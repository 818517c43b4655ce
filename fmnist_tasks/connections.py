"""Airflow connections, in whatever process asks: a task, a server of Airflow's, or a shell."""

from __future__ import annotations

import sys
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
