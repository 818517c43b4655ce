"""Workers that share nothing but the network; one that loses it, or its disk; one whose clock is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fmnist_tasks.registry import champion
from tests.support.airflow_home import until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


def test_each_task_on_another_worker_than_the_one_before_gives_the_model_of_one_machine(
    cluster: FaultCluster, record_property: Record
) -> None:
    if not cluster.on_one:  # no test before had one worker only
        alone = cluster.worker()
        run_id = cluster.begin()
        assert cluster.ended(run_id) == "success"
        cluster.one_release(run_id)
        cluster.clear()
        cluster.take_away(alone)
    assert cluster.on_one

    even, odd = (
        cluster.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "even"}),
        cluster.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "odd"}),
    )
    run_id = cluster.begin()
    assert cluster.ended(run_id) == "success"
    hosts = [task["hostname"] for task in sorted(cluster.ran(run_id), key=lambda task: task["start_date"])]
    assert hosts == [(even, odd)[number % 2].name for number in range(len(hosts))]
    assert len(hosts) == 14
    cluster.one_release(run_id)
    record_property("shown", f"{len(hosts)} tasks, two workers by turns, model {cluster.model[:12]} as on one")


def test_a_worker_that_is_cut_off_for_two_minutes_and_comes_back_changes_nothing_twice(
    cluster: FaultCluster, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (cluster.worker(), cluster.worker())}
    run_id = cluster.begin()
    lost = workers[cluster.begun(run_id)]
    lost.reach(False)
    cut = time.monotonic()
    state = cluster.ended(run_id)
    time.sleep(max(0, cut + 120 - time.monotonic()))  # the test asks for two minutes
    lost.reach(True)
    assert state == "success"
    until(lambda: not lost.tasks())  # its own copy of the training has heard that it is no longer wanted
    task = cluster.tasks(run_id)["train"]
    cluster.one_release(run_id)
    assert cluster.alerts(run_id) == ["champion changed"]
    record_property(
        "shown", f"training in its {task['try_number']}. try on the other worker, one release, one promotion"
    )


def test_a_worker_whose_disk_is_full_says_so_and_another_does_it(
    cluster: FaultCluster, record_property: Record
) -> None:
    full = cluster.worker(disk="200m")
    run_id = cluster.begin()
    cluster.begun(run_id, "validate_data")
    full.fill()
    failed = until(lambda: [task for task in cluster.tasks(run_id).values() if task["state"] == "up_for_retry"])[0]
    step = failed["task_id"].rpartition(".")[2]
    assert "No space left on device" in cluster.log(full).read_text() + cluster.task_log(run_id, step, 1)
    cluster.take_away(full)
    cluster.worker()
    assert cluster.ended(run_id) == "success"
    cluster.one_release(run_id)
    assert cluster.alerts(run_id) == ["champion changed"]
    record_property("shown", f"{step} failed on it, said why, and was done by another")


def test_a_clock_that_is_ten_minutes_ahead_never_puts_champions_into_a_wrong_order(
    cluster: FaultCluster, record_property: Record
) -> None:
    early = cluster.worker(wrapper="faketime -f +10m")
    first = cluster.begin()
    state = cluster.ended(first)
    cluster.take_away(early)
    cluster.worker()
    second = cluster.begin(seed=1, force=True)
    assert cluster.ended(second) == "success"
    history = champion.history(cluster.store)
    assert [entry.write_id for entry in history] == ([first, second] if state == "success" else [second])
    assert champion.champion(cluster.store) == history[-1]
    record_property("shown", f"the run on it ended {state}; {len(history)} champions in the order of their runs")
