"""Workers are killed during training, and another one resumes from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.airflow_home import wait_until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("step", "kills"),  # the number of saved epochs after which each worker is killed
    [("train", [1]), ("train", [0, 3]), ("fine_tune", [0, 2])],
)
def test_a_killed_worker_costs_at_most_one_epoch(
    cluster: FaultCluster, step: str, kills: list[int], record_property: Record
) -> None:
    cluster.start_worker()
    run_id, saved_epochs = cluster.trigger_run(), []
    for attempt, checkpoints in enumerate(kills, start=1):
        cluster.start_worker()  # takes over
        killed = cluster.wait_for_start(run_id, step, attempt)
        wait_until(
            lambda checkpoints=checkpoints: cluster.count_checkpointed_epochs(run_id, step) >= checkpoints, every=0.1
        )
        next(worker for worker in cluster.workers if worker.name == killed).kill()
        saved_epochs.append(cluster.count_checkpointed_epochs(run_id, step))
        assert cluster.wait_for_start(run_id, step, attempt + 1) != killed
    assert cluster.wait_for_end(run_id) == "success"
    assert cluster.read_tasks(run_id)[step]["try_number"] == len(kills) + 1
    for attempt, epochs in enumerate(saved_epochs, start=2):
        log = cluster.read_task_log(run_id, step, attempt)
        starts_correctly = f"{epochs:06d}" in log if epochs else "resuming from" not in log
        assert starts_correctly, log
    cluster.check_only_release(run_id)
    assert cluster.list_alerts(run_id) == ["champion changed"]
    record_property("summary", f"killed in {step} after {saved_epochs} saved epochs; another worker resumed")
