"""Workers that die in training: another goes on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.airflow_home import wait_until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("step", "deaths"),  # after so many checkpoints
    [("train", [1]), ("train", [0, 3]), ("fine_tune", [0, 2])],
)
def test_workers_that_die_in_training_cost_one_epoch_each_at_most(
    cluster: FaultCluster, step: str, deaths: list[int], record_property: Record
) -> None:
    cluster.start_worker()
    run_id, kept = cluster.trigger_run(), []
    for attempt, checkpoints in enumerate(deaths, start=1):
        cluster.start_worker()  # who takes over
        dead = cluster.wait_for_start(run_id, step, attempt)
        wait_until(
            lambda checkpoints=checkpoints: cluster.count_checkpointed_epochs(run_id, step) >= checkpoints, every=0.1
        )
        next(worker for worker in cluster.workers if worker.name == dead).kill()
        kept.append(cluster.count_checkpointed_epochs(run_id, step))
        again = cluster.wait_for_start(run_id, step, attempt + 1)
        assert again != dead
    assert cluster.wait_for_end(run_id) == "success"
    assert cluster.read_tasks(run_id)[step]["try_number"] == len(deaths) + 1
    for attempt, epochs in enumerate(kept, start=2):
        log = cluster.read_task_log(run_id, step, attempt)
        resumed = f"{epochs:06d}" in log if epochs else "going on from" not in log
        assert resumed, log
    cluster.check_only_release(run_id)
    assert cluster.list_alerts(run_id) == ["champion changed"]
    record_property("shown", f"killed in {step} after {kept} kept epochs, which another worker went on from")
