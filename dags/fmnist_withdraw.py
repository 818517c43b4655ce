"""### Withdraw or restore a release or a batch

* A **withdrawn release** is not promoted again, not even with an approval. Neither is a candidate that is the same
  model, or comes from the same data, code and parameters. To withdraw the champion, roll back to another release.
* A **withdrawn batch** is excluded from the dataset from the next run on. Its images stay in the store, with the
  reason.

**Restore** lifts a withdrawal. If the task is red, nothing has changed; its log gives the reason.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context
from fmnist_defaults import ON_REQUEST, declare_task, get_actor, make_dataset_choice, make_reason, open_chosen_store

from fmnist_tasks.settings import WITHDRAW_ID


@declare_task
def withdraw_or_restore() -> dict[str, Any]:
    """Withdraw or restore a release or batch."""
    from fmnist_tasks.serving import withdrawal

    parameters = get_current_context()["params"]
    change = withdrawal.withdraw if parameters["action"] == "withdraw" else withdrawal.restore
    return change(open_chosen_store(), parameters["name"], parameters["reason"], actor=get_actor())


@dag(
    dag_id=WITHDRAW_ID,
    dag_display_name="Withdraw or restore",
    doc_md=__doc__,
    description="Withdraw or restore a release or a batch",
    schedule=None,
    **ON_REQUEST,
    params={
        "dataset": make_dataset_choice("Withdraw or restore"),
        "action": Param(
            "withdraw", title="Action", type="string", enum=["withdraw", "restore"], section="Withdraw or restore"
        ),
        "name": Param(
            "",
            title="Release or batch",
            description="A release, as listed by `fmnist releases`, or a batch, as listed by `fmnist batches`.",
            type="string",
            minLength=1,
            section="Withdraw or restore",
        ),
        "reason": make_reason("It is stored with the decision.", "Withdraw or restore"),
    },
)
def fmnist_withdraw() -> None:
    """The graph: one task."""
    withdraw_or_restore()


fmnist_withdraw()
