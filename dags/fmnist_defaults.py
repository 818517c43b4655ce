"""What the tasks of all DAGs here have in common: who is told of a failure, what is tried again, what is handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from airflow.sdk import XComArg, task
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from fmnist_tasks.alerts import task_failed
from fmnist_tasks.errors import StoreError
from fmnist_tasks.settings import TASK_LIMIT

if TYPE_CHECKING:
    from airflow.sdk.types import Operator

P = ParamSpec("P")
R = TypeVar("R")

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


class StepTask(Protocol[P, R]):
    """A task as a graph uses it: typed by what its function takes and returns when it runs.

    At parse time a call gives an `XComArg` in place of the result; Airflow's own types accept none as an argument.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add the task to the graph."""

    def partial(self, **kwargs: Any) -> StepTask[..., R]:
        """Fix the arguments that all mapped tasks share."""

    def expand(self, **kwargs: Sequence[Any] | XComArg) -> list[R]:
        """Add a task for each element of a list."""


@overload
def step(function: Callable[P, R], /) -> StepTask[P, R]: ...


@overload
def step(**options: Any) -> Callable[[Callable[P, R]], StepTask[P, R]]: ...


def step(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Declare a task, with options of its operator, whose result is one row of XCom.

    TaskFlow would store each key of a dict once more, by a request of its own.
    """
    decorate = task(multiple_outputs=False, **options)
    return decorate if function is None else decorate(function)


def get_operator(result: object) -> Operator:
    """The operator behind what a task returned in a graph, for its links and its edges without data.

    Raises :class:`TypeError` for anything else.
    """
    if not isinstance(result, PlainXComArg):
        raise TypeError(f"expected the result of a task in a graph, not {result!r}")
    return result.operator
