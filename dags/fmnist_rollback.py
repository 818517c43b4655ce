"""### Go back to an earlier release

Checks every byte of the release that is asked for, loads its model, and makes it the champion again by one more entry
in the champion log. With `approval` a person must say yes first.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, get_current_context, task
from fmnist_defaults import TASKS, get_operator, step

from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import APPROVAL_LIMIT, Settings


@task.branch
def ask_person() -> str:
    """Whether somebody must agree first."""
    return "approval" if get_current_context()["params"]["approval"] else "rollback"


@step(trigger_rule="none_failed_min_one_success")
def rollback() -> dict[str, Any]:
    """Check the release, load its model, and append it to the champion log."""
    from fmnist_tasks import service

    context = get_current_context()
    store = open_store(Settings.from_environment().store)
    return service.rollback(store, context["params"]["version"], context["params"]["reason"]).as_json()


@dag(
    dag_id="fmnist_rollback",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=1,
    tags=["fmnist"],
    default_args=TASKS | {"retries": 0},  # a person asked, and sees at once why not
    params={
        "version": Param(
            "",
            title="Release",
            description="The release to roll back to, as the registry page and `fmnist releases` list it.",
            type="string",
            minLength=1,
            section="What",
        ),
        "reason": Param(
            "",
            title="Reason",
            description="Why; it stays in the champion log.",
            type="string",
            minLength=3,
            maxLength=500,
            section="What",
        ),
        "approval": Param(
            False,
            title="Approval",
            description="A person must agree first, within three days.",
            type="boolean",
            section="Who",
        ),
    },
)
def fmnist_rollback() -> None:
    """The graph: ask, if asked to, then roll back."""
    approval = ApprovalOperator(
        task_id="approval",
        doc_md="Asks a person whether to go back, for three days at most: no answer is a no.",
        subject="May {{ params.version }} become the champion again?",
        body="{{ params.reason }}",
        response_timeout=APPROVAL_LIMIT,
        fail_on_reject=True,
    )
    asked = ask_person()
    asked >> approval
    [asked, approval] >> get_operator(rollback())


fmnist_rollback()
