"""Workers that die in training: another goes on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.airflow_home import until
from tests.support.fault_cluster import Drill

pytestmark = pytest.mark.integration

Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("step", "deaths"),  # after so many checkpoints
    [
        ("train", [1]),
        pytest.param("train", [0, 3], marks=pytest.mark.exhaustive),
        pytest.param("fine_tune", [0, 2], marks=pytest.mark.exhaustive),
    ],
)
def test_workers_that_die_in_training_cost_one_epoch_each_at_most(
    drill: Drill, step: str, deaths: list[int], record_property: Record
) -> None:
    drill.worker()
    run_id, kept = drill.begin(), []
    for attempt, checkpoints in enumerate(deaths, start=1):
        drill.worker()  # who takes over
        dead = drill.begun(run_id, step, attempt)
        until(lambda checkpoints=checkpoints: drill.epochs(run_id, step) >= checkpoints, every=0.1)
        next(worker for worker in drill.workers if worker.name == dead).kill()
        kept.append(drill.epochs(run_id, step))
        again = drill.begun(run_id, step, attempt + 1)
        assert again != dead
    assert drill.ended(run_id) == "success"
    assert drill.tasks(run_id)[step]["try_number"] == len(deaths) + 1
    for attempt, epochs in enumerate(kept, start=2):
        log = drill.task_log(run_id, step, attempt)
        resumed = f"{epochs:06d}" in log if epochs else "going on from" not in log
        assert resumed, log
    drill.one_release(run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property("shown", f"killed in {step} after {kept} kept epochs, which another worker went on from")
