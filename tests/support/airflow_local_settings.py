"""Airflow cluster policy for fault injection: consecutive tasks of the pipeline go to alternating queues.

Airflow reads this file from `$AIRFLOW_HOME/config`.
"""

from __future__ import annotations

from typing import Any

QUEUES = ("even", "odd")


def dag_policy(dag: Any) -> None:
    if dag.dag_id == "fmnist_retrain":
        # Without the approval, which is skipped in these runs.
        tasks = [task for task in dag.topological_sort() if task.task_id != "tuned_model.approval"]
        for number, task in enumerate(tasks):
            task.queue = QUEUES[number % 2]
