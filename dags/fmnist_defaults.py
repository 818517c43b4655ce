"""What the tasks of all DAGs here have in common: who is told of a failure, what is tried again, what is handed on."""

from __future__ import annotations

from functools import partial
from typing import Any

from airflow.sdk import task
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

from fmnist_tasks.alerts import task_failed
from fmnist_tasks.errors import StoreError
from fmnist_tasks.settings import TASK_LIMIT

# What may pass is tried again: an object store or a network that does not answer, a machine whose disk is full (another
# worker may have room). Bad data and weak models stay so.
RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=[StoreError, OSError], action=RetryAction.RETRY),
        RetryRule(exception=Exception, action=RetryAction.FAIL, reason="trying again cannot help"),
    ]
)
TASKS: dict[str, Any] = {
    "owner": "fmnist",
    "retries": 2,
    "retry_exponential_backoff": True,
    "retry_policy": RETRIES,
    "on_failure_callback": task_failed,
    "execution_timeout": TASK_LIMIT,
}
# A task whose answer is one row of XCom: TaskFlow would keep each key of a dict once more, by a request of its own.
step = partial(task, multiple_outputs=False)
