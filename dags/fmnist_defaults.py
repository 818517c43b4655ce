"""What the tasks of all DAGs have in common: who is notified of a failure, what is retried, who acts, who approves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Asset, BaseNotifier, Param, XComArg, get_current_context, task
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from fmnist_tasks.alerts import approval_requested, task_failed
from fmnist_tasks.errors import StoreError
from fmnist_tasks.settings import APPROVAL_LIMIT, CHAMPION_ASSET, LONGEST_REASON, TASK_LIMIT

if TYPE_CHECKING:
    from airflow.sdk.types import Operator

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def report_ignored_keys(context: Mapping[str, Any]) -> None:
    """Log the keys of the run's conf that are no parameter of the DAG: Airflow accepts any, and nothing reads them."""
    if unknown := sorted((context["dag_run"].conf or {}).keys() - context["dag"].params.keys()):
        log.warning("ignored in this run's conf, since %s has no such parameter: %s", context["dag"].dag_id, unknown)


# What may pass is tried again: an object store or a network that does not answer, a machine whose disk is full (another
# worker may have room). Bad data and weak models stay so, and so do files that are missing or closed to us.
RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=[FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError],
            action=RetryAction.FAIL,
            reason="trying again cannot help",
        ),
        RetryRule(
            exception=[StoreError, OSError, HTTPException, "httpx.TransportError", "urllib3.exceptions.HTTPError"],
            action=RetryAction.RETRY,
        ),
        RetryRule(exception=Exception, action=RetryAction.FAIL, reason="trying again cannot help"),
    ]
)
TASKS: dict[str, Any] = {
    "owner": "fmnist",
    "retries": 2,
    "retry_exponential_backoff": True,
    "retry_policy": RETRIES,
    "on_failure_callback": task_failed,
    "on_execute_callback": report_ignored_keys,
    "execution_timeout": TASK_LIMIT,
}


# Of a DAG that a user runs: the user is waiting, and sees at once why not.
ON_REQUEST: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "max_active_runs": 1,
    "tags": ["fmnist"],
    "default_args": TASKS | {"retries": 0},
}
CHAMPION = Asset(CHAMPION_ASSET)
REASON = "approval_reason"  # field of an approval; `reason` alone is a parameter of fmnist_rollback


class ApprovalNotifier(BaseNotifier):
    """Sends the alert that an approval is needed."""

    def notify(self, context: Any) -> None:
        """Send it, for the task that asks."""
        approval_requested(context)


class Approval(ApprovalOperator):
    """Waits for a user to approve or reject, with a reason; no response within three days is a failure.

    Any user who may edit the task's run may respond, the one who triggered it included.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Airflow gives some of these to every operator; those of this one win.
        # Airflow validates it before anybody was asked, so that it must be valid while it is empty.
        reason = Param(
            "", title="Reason", description="Required to approve; it is kept with the decision.", type="string"
        )
        own: dict[str, Any] = {
            "response_timeout": APPROVAL_LIMIT,
            "execution_timeout": None,
            "params": {REASON: reason},
            "notifiers": [ApprovalNotifier()],
        }
        super().__init__(fail_on_reject=True, **kwargs | own)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """The response; raises if it rejects, or gives no reason."""
        response = HITLOperator.execute_complete(self, context, event)
        user = (response["responded_by_user"] or {}).get("name", "an unknown user")
        reason = (response["params_input"] or {}).get(REASON, "").strip()
        if response["chosen_options"] != [self.APPROVE]:
            raise HITLRejectException(f"{user} rejected it: {reason or 'no reason was given'}")
        if not reason:
            raise ValueError(f"{user} approved without a reason; clear this task to be asked again")
        return response


def make_reason(description: str, section: str) -> Param:
    """The required field of a form in which a user gives a reason."""
    return Param(
        "",
        title="Reason",
        description=description,
        type="string",
        minLength=3,
        maxLength=LONGEST_REASON,
        section=section,
    )


def get_actor() -> str:
    """The user who triggered this run, or what started it otherwise."""
    return str(get_current_context()["dag_run"].triggering_user_name or "schedule")


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
