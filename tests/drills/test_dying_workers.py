"""Workers that die in training: another goes on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from airflow_home import until
from drill import Drill

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("step", "checkpoints"),
    [
        ("train", 1),
        pytest.param("train", 0, marks=pytest.mark.drill),
        pytest.param("train", 3, marks=pytest.mark.drill),
        pytest.param("fine_tune", 0, marks=pytest.mark.drill),
        pytest.param("fine_tune", 1, marks=pytest.mark.drill),
    ],
)
def test_a_worker_that_dies_in_training_costs_one_epoch_at_most(
    drill: Drill, step: str, checkpoints: int, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (drill.worker(), drill.worker())}
    run_id = drill.begin()
    dead = drill.begun(run_id, step)
    until(lambda: drill.epochs(run_id, step) >= checkpoints, every=0.02)
    workers[dead].kill()
    kept = drill.epochs(run_id, step)
    assert drill.ended(run_id) == "success"
    task = drill.tasks(run_id)[step]
    assert (task["hostname"] != dead, task["try_number"]) == (True, 2)
    again = drill.task_log(run_id, step, 2)
    resumed = f"{kept:06d}" in again if kept else "going on from" not in again
    assert resumed, again
    drill.one_release(run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property("shown", f"killed in {step} after {kept} kept epochs, which the other worker went on from")
