"""### Roll back to an earlier release

Verifies the release (digests, predictions, test accuracy), makes it the champion with a new entry in the champion log,
and withdraws the release that it replaces. Until `fmnist_withdraw` restores that release, no run promotes the same
model, or one from the same data, code and parameters.

The release must have been the champion before, and have the champion's classes; **Force** waives both. With **Wait for
approval** on, a user must approve within three days. That may be the user who triggered the run.

If a task is red, the champion has not changed. Its log gives the reason. Correct the form and trigger the DAG again.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from fmnist_defaults import (
    CHAMPIONS,
    ON_REQUEST,
    Approval,
    declare_task,
    emit_champion_event,
    get_actor,
    get_chosen_dataset,
    get_operator,
    make_dataset_choice,
    make_reason,
    open_chosen_store,
)

from fmnist_tasks.settings import ROLLBACK_ID


@declare_task
def find_champion() -> dict[str, Any]:
    """Find the champion to replace. If the champion changes before the rollback, the rollback fails."""
    from fmnist_tasks.serving.release import require_champion

    current = require_champion(open_chosen_store(), get_current_context()["params"]["replaces"])
    return current.model_dump(include={"version", "sequence"})


@task.branch
def check_approval() -> str:
    """Request an approval if the form requires one."""
    return "approval" if get_current_context()["params"]["approval"] else "rollback"


@declare_task(trigger_rule="none_failed_min_one_success", outlets=[CHAMPIONS])
def rollback(current: dict[str, Any]) -> dict[str, Any]:
    """Verify the release, append it to the champion log, and emit the champion's asset event."""
    from fmnist_tasks.serving.rollback import roll_back

    parameters = get_current_context()["params"]
    entry = roll_back(
        open_chosen_store(),
        parameters["version"],
        parameters["reason"],
        actor=get_actor(),
        after=current["sequence"],
        force=parameters["force"],
    ).to_json()
    emit_champion_event(get_chosen_dataset(), version=entry["version"], sequence=entry["sequence"])
    return entry


@dag(
    dag_id=ROLLBACK_ID,
    dag_display_name="Roll back",
    doc_md=__doc__,
    description="Make an earlier release the champion again",
    schedule=None,
    **ON_REQUEST,
    params={
        "dataset": make_dataset_choice("Rollback"),
        "version": Param(
            "",
            title="Release",
            description="The release to roll back to, as listed on the Releases page and by `fmnist releases`.",
            type="string",
            minLength=1,
            section="Rollback",
        ),
        "reason": make_reason("Why you are replacing the champion. It is stored in the champion log.", "Rollback"),
        "replaces": Param(
            None,
            title="Current champion",
            description="If set, the run fails unless this release is still the champion.",
            type=["null", "string"],
            section="Rollback",
        ),
        "force": Param(
            False,
            title="Force",
            description="Allow a release that was never the champion, or has other classes.",
            type="boolean",
            section="Rollback",
        ),
        "approval": Param(
            False,
            title="Wait for approval",
            description="Wait up to three days for a user to approve. Off: roll back at once.",
            type="boolean",
            section="Approval",
        ),
    },
)
def fmnist_rollback() -> None:
    """The graph: find the champion, request an approval if required, roll back."""
    current = find_champion()
    approval = Approval(
        task_id="approval",
        doc_md="Waits up to three days for a user to approve or reject the rollback.",
        subject="Roll back from {{ ti.xcom_pull(task_ids='find_champion')['version'] }} to {{ params.version }}?",
        body="{{ params.reason }}",
    )
    checked = check_approval()
    rolled_back = get_operator(rollback(current))
    get_operator(current) >> checked >> approval
    [checked, approval] >> rolled_back


fmnist_rollback()
