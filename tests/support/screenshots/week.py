"""What happens at a moment of the history, under `faketime`: python -m tests.support.screenshots.week COMMAND ….

`run DAG TIME CONF` runs a DAG as `airflow dags test` does, but as a run of the schedule; `fmnist …` is that command.
The store's clock is that of its files, which `faketime` does not change; here it is the process's own.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import fmnist_defaults
from airflow.__main__ import main
from airflow.models.dagrun import DagRun
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.utils.types import DagRunType

from fmnist_tasks import cli
from fmnist_tasks.alerts import outbox
from fmnist_tasks.registry import champion


def run_week(dag_id: str, time: str, conf: str) -> None:
    """Run a DAG once; exits like Airflow's command."""
    create_run = SerializedDAG.create_dagrun

    def create_scheduled_run(dag: SerializedDAG, **options: Any) -> DagRun:
        return create_run(dag, **options | {"run_type": DagRunType.SCHEDULED})

    with (
        patch.object(fmnist_defaults, "get_actor", lambda: "schedule"),
        patch.object(DagRun, "generate_run_id", lambda **_: f"scheduled__{time}"),
        patch.object(SerializedDAG, "create_dagrun", create_scheduled_run),
        patch.object(sys, "argv", ["airflow", "dags", "test", dag_id, time, "--conf", conf]),
    ):
        main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    with (
        patch.object(champion, "read_clock", lambda _: datetime.now(UTC)),
        patch.object(outbox, "read_clock", lambda _: datetime.now(UTC)),
    ):
        if command == "run":
            run_week(*arguments)
        else:
            cli.app(arguments)
