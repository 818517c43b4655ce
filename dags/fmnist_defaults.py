"""Defaults of all DAGs: alerts on failure, retries, schedule, approvals, and the acting user."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from airflow.exceptions import AirflowTimetableInvalid
from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Asset, AssetAlias, BaseNotifier, CronTriggerTimetable, Param, XComArg, get_current_context, task
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from fmnist_tasks.alerts import alert_approval_request, alert_task_failure, find_airflow_address
from fmnist_tasks.errors import SettingsError, StoreError
from fmnist_tasks.settings import (
    APPROVAL_LIMIT,
    DEFAULT_DATASET,
    MAX_REASON_LENGTH,
    TASK_LIMIT,
    DagSettings,
    find_page,
    list_datasets,
    name_champion_asset,
)

if TYPE_CHECKING:
    from airflow.sdk.types import Operator

    from fmnist_tasks.registry.store import Store

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def report_ignored_keys(context: Mapping[str, Any]) -> None:
    """Log keys of the run's conf that are not parameters of the DAG. Airflow accepts them, but nothing reads them."""
    if unknown := sorted((context["dag_run"].conf or {}).keys() - context["dag"].params.keys()):
        log.warning(
            "ignoring keys of this run's conf that are not parameters of %s: %s", context["dag"].dag_id, unknown
        )


# Transient errors are retried: a store or network that does not respond, a full disk (another worker may have space).
# Bad data, weak models, and files that are missing or not readable are not.
RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=[FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError],
            action=RetryAction.FAIL,
            reason="not retryable",
        ),
        RetryRule(
            exception=[StoreError, OSError, HTTPException, "httpx.TransportError", "urllib3.exceptions.HTTPError"],
            action=RetryAction.RETRY,
        ),
        RetryRule(exception=Exception, action=RetryAction.FAIL, reason="not retryable"),
    ]
)


def read_labels() -> tuple[str, list[str]]:
    """Owner and tags of all DAGs; the defaults if a setting is not valid, so that `fmnist_watch` can report it."""
    try:
        settings = DagSettings.from_environment()
    except SettingsError:
        settings = DagSettings.from_environment({})
    return settings.owner, list(settings.tags)


OWNER, TAGS = read_labels()
_FIRST_RUN_DELAY = timedelta(minutes=10)  # unpaused this soon after a scheduled time, its run still starts
TASKS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 2,
    "retry_exponential_backoff": True,
    "retry_policy": RETRIES,
    "on_failure_callback": alert_task_failure,
    "on_execute_callback": report_ignored_keys,
    "execution_timeout": TASK_LIMIT,
}


DAGS: dict[str, Any] = {"catchup": False, "max_active_runs": 1, "tags": TAGS, "default_args": TASKS}
# For DAGs that users trigger. They do not retry, because a user waits for the result.
ON_REQUEST = DAGS | {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "default_args": TASKS | {"retries": 0}}
# Tasks that serve all datasets add the event of one asset to this alias: an outlet would emit one of each.
CHAMPIONS = AssetAlias("fmnist_champion_models")
REASON = "approval_reason"  # field of an approval; fmnist_rollback has a parameter `reason`


class ApprovalNotifier(BaseNotifier):
    """Sends the alert "approval needed"."""

    def notify(self, context: Any) -> None:
        """Send the alert for the waiting task."""
        alert_approval_request(context)


class Approval(ApprovalOperator):
    """Waits up to three days for a user to approve or reject, with a reason; without a response it fails.

    Any user who may edit the run can respond, including the one who triggered it.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Airflow validates the field before anyone has filled it in, so the empty value must be valid.
        reason = Param(
            "",
            title="Reason",
            description="Required, also to reject. It is stored with the decision.",
            type="string",
            maxLength=MAX_REASON_LENGTH,
        )
        # Airflow passes defaults for some of these to every operator; these values take precedence.
        fixed: dict[str, Any] = {
            "response_timeout": APPROVAL_LIMIT,
            "execution_timeout": None,
            "params": {REASON: reason},
            "notifiers": [ApprovalNotifier()],
        }
        super().__init__(fail_on_reject=True, **kwargs | fixed)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """The response. Raises if the user rejects, or approves without a reason."""
        response = HITLOperator.execute_complete(self, context, event)
        user = (response["responded_by_user"] or {}).get("name", "an unknown user")
        reason = (response["params_input"] or {}).get(REASON, "").strip()
        if response["chosen_options"] != [self.APPROVE]:
            raise HITLRejectException(f"{user} rejected it: {reason or 'no reason given'}")
        if not reason:
            raise ValueError(f"{user} approved without a reason; clear this task to request the approval again")
        return response


def read_schedule() -> CronTriggerTimetable | None:
    """The timetable of scheduled runs. Raises :class:`SettingsError` if a setting of the DAGs is not valid.

    The DAG has no start date, so its first run is the next one after it is unpaused. With a start date, or with the
    default of `run_immediately`, unpausing would start this week's run, ahead of a run that a user triggers.
    """
    settings = DagSettings.from_environment()
    expression, timezone = settings.schedule, settings.timezone
    if expression is None:
        return None
    from airflow.timetables.base import TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable as SchedulersTimetable

    try:
        if len(expression.split()) != 5 and not expression.startswith("@"):  # six fields would include seconds
            raise ValueError("a cron expression has five fields")
        if re.search(r"(?i)(?<![A-Z])[RH](?![A-Z])", expression):  # croniter's random and hashed fields
            raise ValueError("a random field differs from one parse to the next")
        timetable = SchedulersTimetable(expression, timezone=timezone)
        timetable.validate()
        timetable.next_dagrun_info(
            last_automated_data_interval=None, restriction=TimeRestriction(earliest=None, latest=None, catchup=False)
        )  # raises if there is no such time, as on 30 February
    except (AirflowTimetableInvalid, ValueError, LookupError) as error:
        raise SettingsError(
            f"FMNIST_SCHEDULE: {expression[:80]!r} is not a cron expression that has a next time, such as '0 2 * * 1' "
            "(Mondays at 02:00); use one, or 'none'"
        ) from error
    return CronTriggerTimetable(expression, timezone=timezone, run_immediately=_FIRST_RUN_DELAY)


def link_pages(doc: str | None, dataset: str = "") -> str:
    """The documentation of a DAG, with the whole address in links to the Releases page."""
    return (doc or "").replace("](/fmnist/", f"]({find_airflow_address()}{find_page(dataset)}")


def make_dataset_choice(section: str) -> Param:
    """The field "Dataset" of a form that serves all datasets."""
    return Param(
        DEFAULT_DATASET,
        title="Dataset",
        description="The dataset to act on.",
        type="string",
        enum=[DEFAULT_DATASET, *list_datasets()],
        section=section,
    )


def get_chosen_dataset() -> str:
    """The name of the dataset that the form of this run names; empty: the default dataset."""
    name: str = get_current_context()["params"]["dataset"]
    return "" if name == DEFAULT_DATASET else name


def open_chosen_store() -> Store:
    """The store of the dataset that the form of this run names."""
    from fmnist_tasks.registry.stores import open_default_store

    return open_default_store(get_chosen_dataset())


def make_reason(description: str, section: str) -> Param:
    """The required field "Reason" of a form."""
    return Param(
        "",
        title="Reason",
        description=description,
        type="string",
        minLength=3,
        maxLength=MAX_REASON_LENGTH,
        section=section,
    )


def emit_champion_event(dataset: str, **extra: Any) -> None:
    """Emit the event of a dataset's champion from a task whose outlet is `CHAMPIONS`."""
    events = get_current_context()["outlet_events"]
    events[CHAMPIONS].add(Asset(name_champion_asset(dataset)), extra=extra)


def get_actor() -> str:
    """The user who triggered this run, or "schedule"."""
    return str(get_current_context()["dag_run"].triggering_user_name or "schedule")


class StepTask(Protocol[P, R]):
    """A task in a graph, with the types of its function's arguments and result.

    At parse time, a call returns an `XComArg` in place of the result. Airflow's types do not accept an `XComArg` as an
    argument.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add the task to the graph."""

    def partial(self, **kwargs: Any) -> StepTask[..., R]:
        """Fix the arguments that all mapped tasks share."""

    def expand(self, **kwargs: Sequence[Any] | XComArg) -> list[R]:
        """Add a task for each element of a list."""


@overload
def declare_task(function: Callable[P, R], /) -> StepTask[P, R]: ...


@overload
def declare_task(**options: Any) -> Callable[[Callable[P, R]], StepTask[P, R]]: ...


def declare_task(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Declare a task, with options of its operator, whose result is one row of XCom.

    By default TaskFlow also stores each key of a dict, with a separate request.
    """
    decorate = task(multiple_outputs=False, **options)
    return decorate if function is None else decorate(function)


def get_operator(result: object) -> Operator:
    """The operator of a task in a graph, for links and for edges without data.

    Raises :class:`TypeError` if the argument is not the result of a task.
    """
    if not isinstance(result, PlainXComArg):
        raise TypeError(f"expected the result of a task in a graph, not {result!r}")
    return result.operator
