"""A cluster policy for fault injection: each task of the pipeline goes into the other queue than the one before it.

Airflow reads this file where it lies in `$AIRFLOW_HOME/config`.
"""

from __future__ import annotations

from typing import Any

QUEUES = ("even", "odd")


def dag_policy(dag: Any) -> None:
    if dag.dag_id == "fmnist_retrain":
        order = [task for task in dag.topological_sort() if task.task_id != "tuned_model.approval"]  # nobody is asked
        for number, task in enumerate(order):
            task.queue = QUEUES[number % 2]
