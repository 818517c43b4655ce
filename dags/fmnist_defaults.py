"""What the tasks of all DAGs here have in common: who is told of a failure, and what is tried again."""

from __future__ import annotations

from typing import Any

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
