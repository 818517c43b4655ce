"""### Batch prediction with the champion

Classifies all images in a folder of the object store, in parallel shards, and writes one CSV file per shard to
`predictions/<run id>/`: class, or that the image is out of distribution; all probabilities, OOD score, release.
Images are `.npz` (`images`), PNG, JPEG, GIF, BMP, WebP or TIFF. A file that cannot be read is a row with the reason; if
no file can be read, the run fails.

Runs on request, and after every change of the default dataset's champion if `FMNIST_PREDICT_PREFIX` is set.

If `predict_shard` is red, clear it: a shard that runs again replaces its file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Asset, Param, dag, get_current_context, task
from fmnist_defaults import DAGS, declare_task, get_operator, make_dataset_choice, open_chosen_store

from fmnist_tasks.settings import CHAMPION_ASSET, EXACT_TYPE, read_predict_prefix

PREFIX = read_predict_prefix()


@task.short_circuit
def has_prefix() -> bool:
    """Skip the run if the field Folder is empty."""
    return bool(get_current_context()["params"]["prefix"])


@declare_task
def plan_shards() -> list[dict[str, Any]]:
    """Divide the files into shards, all for the same champion."""
    from airflow.configuration import conf

    from fmnist_tasks.serving import batch_prediction

    parameters = get_current_context()["params"]
    max_shards = conf.getint("core", "max_map_length")
    return batch_prediction.plan_shards(open_chosen_store(), parameters["prefix"], parameters["files"], max_shards)


@declare_task(
    doc_md="Classify the images of a shard.", map_index_template="shard {{ task.op_kwargs['shard']['number'] }}"
)
def predict_shard(shard: dict[str, Any]) -> dict[str, Any]:
    """Classify the images of one shard."""
    from fmnist_tasks.serving import batch_prediction

    return batch_prediction.predict_shard(open_chosen_store(), get_current_context()["run_id"], shard)


@declare_task
def write_summary(shards: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Write `summary.json`."""
    from fmnist_tasks.serving import batch_prediction

    return batch_prediction.write_summary(open_chosen_store(), get_current_context()["run_id"], shards, list(results))


@dag(
    dag_id="fmnist_predict",
    dag_display_name="Predict a folder",
    doc_md=__doc__,
    description="Classify all images in a folder of the object store",
    schedule=[Asset(CHAMPION_ASSET)],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    **DAGS,
    params={
        "dataset": make_dataset_choice("Images"),
        "prefix": Param(
            PREFIX,
            title="Folder",
            description="Folder of the object store, for example inbox/2026-11/. Empty: the run is skipped.",
            type="string",
            section="Images",
        ),
        "files": Param(
            500,
            title="Files per shard",
            description="Shards run in parallel on all workers. If there would be more shards than Airflow can map "
            "over (core.max_map_length), each shard gets more files.",
            type="integer",
            minimum=1,
            maximum=100_000,
            section="Images",
            **EXACT_TYPE,
        ),
    },
)
def fmnist_predict() -> None:
    """The graph: plan the shards, predict them in parallel, write the summary."""
    shards = plan_shards()
    has_prefix() >> get_operator(shards)
    write_summary(shards, predict_shard.expand(shard=shards))


fmnist_predict()
