"""### Withdraw or restore a release or a batch

* A **withdrawn release** is not promoted again, not even with an approval, until it is restored; nor is a candidate
  that is the same model, or was trained by the same code with the same parameters on the same data. To withdraw the
  champion, roll back to another release.
* A **withdrawn batch** leaves the dataset from the next run on. Its images are kept, with the reason.

**Restore** undoes either.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context
from fmnist_defaults import ON_REQUEST, get_actor, make_reason, step

from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import WITHDRAW_ID, read_store_uri


@step
def decide() -> dict[str, Any]:
    """Withdraw or restore what the form names."""
    from fmnist_tasks import withdrawal

    parameters = get_current_context()["params"]
    act = withdrawal.withdraw if parameters["action"] == "withdraw" else withdrawal.restore
    store = open_store(read_store_uri())
    return act(store, parameters["name"], parameters["reason"], actor=get_actor())


@dag(
    dag_id=WITHDRAW_ID,
    doc_md=__doc__,
    description="Withdraw or restore a release or a batch",
    schedule=None,
    **ON_REQUEST,
    params={
        "action": Param(
            "withdraw", title="Action", type="string", enum=["withdraw", "restore"], section="Withdraw or restore"
        ),
        "name": Param(
            "",
            title="Release or batch",
            description="A release as `fmnist releases` lists it, or a batch as `fmnist batches` lists it.",
            type="string",
            minLength=1,
            section="Withdraw or restore",
        ),
        "reason": make_reason("It is kept with the decision.", "Withdraw or restore"),
    },
)
def fmnist_withdraw() -> None:
    """One task."""
    decide()


fmnist_withdraw()
