"""Workers that share nothing but the network; one that loses it, or its disk; one whose clock is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fmnist_tasks.registry import champion
from tests.support.airflow_home import until
from tests.support.fault_cluster import Drill

pytestmark = pytest.mark.integration

Record = Callable[[str, object], None]


def test_each_task_on_another_worker_than_the_one_before_gives_the_model_of_one_machine(
    drill: Drill, record_property: Record
) -> None:
    if not drill.on_one:  # no drill before had one worker only
        alone = drill.worker()
        run_id = drill.begin()
        assert drill.ended(run_id) == "success"
        drill.one_release(run_id)
        drill.clear()
        drill.take_away(alone)
    assert drill.on_one

    even, odd = (
        drill.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "even"}),
        drill.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "odd"}),
    )
    run_id = drill.begin()
    assert drill.ended(run_id) == "success"
    hosts = [task["hostname"] for task in sorted(drill.ran(run_id), key=lambda task: task["start_date"])]
    assert hosts == [(even, odd)[number % 2].name for number in range(len(hosts))]
    assert len(hosts) == 14
    drill.one_release(run_id)
    record_property("shown", f"{len(hosts)} tasks, two workers by turns, model {drill.model[:12]} as on one")


@pytest.mark.exhaustive
def test_a_worker_that_is_cut_off_for_two_minutes_and_comes_back_changes_nothing_twice(
    drill: Drill, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (drill.worker(), drill.worker())}
    run_id = drill.begin()
    lost = workers[drill.begun(run_id)]
    lost.reach(False)
    cut = time.monotonic()
    state = drill.ended(run_id)
    time.sleep(max(0, cut + 120 - time.monotonic()))  # the drill asks for two minutes
    lost.reach(True)
    assert state == "success"
    until(lambda: not lost.tasks())  # its own copy of the training has heard that it is no longer wanted
    task = drill.tasks(run_id)["train"]
    drill.one_release(run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property(
        "shown", f"training in its {task['try_number']}. try on the other worker, one release, one promotion"
    )


@pytest.mark.exhaustive
def test_a_worker_whose_disk_is_full_says_so_and_another_does_it(drill: Drill, record_property: Record) -> None:
    full = drill.worker(disk="200m")
    run_id = drill.begin()
    drill.begun(run_id, "validate_data")
    full.fill()
    failed = until(lambda: [task for task in drill.tasks(run_id).values() if task["state"] == "up_for_retry"])[0]
    step = failed["task_id"].rpartition(".")[2]
    assert "No space left on device" in drill.log(full).read_text() + drill.task_log(run_id, step, 1)
    drill.take_away(full)
    drill.worker()
    assert drill.ended(run_id) == "success"
    drill.one_release(run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property("shown", f"{step} failed on it, said why, and was done by another")


@pytest.mark.exhaustive
def test_a_clock_that_is_ten_minutes_ahead_never_puts_champions_into_a_wrong_order(
    drill: Drill, record_property: Record
) -> None:
    early = drill.worker(wrapper="faketime -f +10m")
    first = drill.begin()
    state = drill.ended(first)
    drill.take_away(early)
    drill.worker()
    second = drill.begin(seed=1, force=True)
    assert drill.ended(second) == "success"
    history = champion.history(drill.store)
    assert [entry.write_id for entry in history] == ([first, second] if state == "success" else [second])
    assert champion.champion(drill.store) == history[-1]
    record_property("shown", f"the run on it ended {state}; {len(history)} champions in the order of their runs")
