"""### Roll back to an earlier release

Verifies the release (digests, predictions, test accuracy), makes it the champion by one more entry in the champion log,
and withdraws the release that it replaces: no later run promotes the same model, or one trained by the same code with
the same parameters on the same data, until `fmnist_withdraw` restores it.

The release must have been the champion before and have the champion's classes; **Force** waives both. With
**Approval** on, the run waits up to three days for a user to approve. Any user who may edit its runs can do so, the one
who triggered it included: approval is a second look, not necessarily a second person.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from fmnist_defaults import CHAMPION, ON_REQUEST, Approval, get_actor, get_operator, make_reason, step

from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.settings import ROLLBACK_ID, read_store_uri


def store() -> Store:
    """The store with the releases and the champion log."""
    return open_store(read_store_uri())


@step
def find_champion() -> dict[str, Any]:
    """Note the champion that is to be replaced: if another run replaces it first, nothing is rolled back."""
    from fmnist_tasks import service

    return service.require_champion(store(), get_current_context()["params"]["replaces"]).as_json()


@task.branch
def ask_user() -> str:
    """With approval on, a user must approve first."""
    return "approval" if get_current_context()["params"]["approval"] else "rollback"


@step(trigger_rule="none_failed_min_one_success", outlets=[CHAMPION])
def rollback(current: dict[str, Any]) -> dict[str, Any]:
    """Verify the release, append it to the champion log, and emit the champion's asset event."""
    from fmnist_tasks import service

    context = get_current_context()
    parameters = context["params"]
    entry = service.rollback(
        store(),
        parameters["version"],
        parameters["reason"],
        actor=get_actor(),
        after=current["sequence"],
        force=parameters["force"],
    ).as_json()
    context["outlet_events"][CHAMPION].extra.update({name: entry[name] for name in ("version", "sequence")})
    return entry


@dag(
    dag_id=ROLLBACK_ID,
    doc_md=__doc__,
    description="Make an earlier release the champion again",
    schedule=None,
    **ON_REQUEST,
    params={
        "version": Param(
            "",
            title="Release",
            description="The release to roll back to, as the registry page and `fmnist releases` list it.",
            type="string",
            minLength=1,
            section="Rollback",
        ),
        "reason": make_reason("Why the champion is replaced. It is kept in the champion log.", "Rollback"),
        "replaces": Param(
            None,
            title="Champion to replace",
            description="The run fails if another release is the champion when it starts. "
            "Empty: whichever is the champion then.",
            type=["null", "string"],
            section="Rollback",
        ),
        "force": Param(
            False,
            title="Force",
            description="Also accept a release that has never been the champion, or has other classes.",
            type="boolean",
            section="Rollback",
        ),
        "approval": Param(
            False,
            title="Approval",
            description="Wait for a user to approve, three days at most.",
            type="boolean",
            section="Approval",
        ),
    },
)
def fmnist_rollback() -> None:
    """The graph: find the champion, ask if required, roll back."""
    current = find_champion()
    approval = Approval(
        task_id="approval",
        doc_md="Waits up to three days for a user to approve or reject the rollback.",
        subject="Roll back from {{ ti.xcom_pull(task_ids='find_champion')['version'] }} to {{ params.version }}?",
        body="{{ params.reason }}",
    )
    asked = ask_user()
    rolled_back = get_operator(rollback(current))
    get_operator(current) >> asked >> approval
    [asked, approval] >> rolled_back


fmnist_rollback()
