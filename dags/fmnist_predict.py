"""### Batch prediction with the champion

Answers every image in a folder of the object store, in shards, and writes a table for each to
`predictions/<run id>/`: the class or "not clothing", all probabilities, the familiarity, the release that answered. A
file that cannot be read is a row with the reason; if none can, the run fails.

Triggered by hand, and by every new champion if `FMNIST_PREDICT_PREFIX` names a prefix.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, dag, get_current_context, task
from fmnist_defaults import TASKS, get_operator, step

from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.settings import CHAMPION_ASSET, EXACT_TYPE, Settings, read_store_uri

PREFIX = Settings.from_environment().predict_prefix


def store() -> Store:
    """The store that the images are in, and the answers go to."""
    return open_store(read_store_uri())


@task.short_circuit
def wanted() -> bool:
    """Whether there is a prefix to work on: a new champion without one has nothing to do."""
    return bool(get_current_context()["params"]["prefix"])


@step
def plan() -> list[dict[str, Any]]:
    """Divide the files into shards, all for the same champion."""
    from airflow.configuration import conf

    from fmnist_tasks import batch

    parameters = get_current_context()["params"]
    most = conf.getint("core", "max_map_length")
    return batch.plan(store(), parameters["prefix"], parameters["files"], most)


@step(doc_md="Answer the images of a shard.", map_index_template="shard {{ task.op_kwargs['shard']['number'] }}")
def predict(shard: dict[str, Any]) -> dict[str, Any]:
    """Answer the images of one shard."""
    from fmnist_tasks import batch

    return batch.predict(store(), get_current_context()["run_id"], shard)


@step
def summarise(shards: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write what all shards found."""
    from fmnist_tasks import batch

    return batch.summarise(store(), get_current_context()["run_id"], shards, list(results))


@dag(
    dag_id="fmnist_predict",
    doc_md=__doc__,
    schedule=[Asset(CHAMPION_ASSET)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["fmnist"],
    default_args=TASKS,
    params={
        "prefix": Param(
            PREFIX,
            title="Folder",
            description="The folder of the object store that has the images, for instance inbox/2026-11/. "
            "Empty: nothing is done.",
            type="string",
            section="Images",
        ),
        "files": Param(
            500,
            title="Files in a shard",
            description="Shards run side by side, on as many workers as there are. Shards are larger where there would "
            "be more of them than Airflow maps over (core.max_map_length).",
            type="integer",
            minimum=1,
            maximum=100_000,
            section="Images",
            **EXACT_TYPE,
        ),
    },
)
def fmnist_predict() -> None:
    """The graph: plan, answer shards side by side, sum up."""
    shards = plan()
    wanted() >> get_operator(shards)
    summarise(shards, predict.expand(shard=shards))


fmnist_predict()
