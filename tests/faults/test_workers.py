"""Workers that share nothing but the network; one that loses it, or its disk; one whose clock is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fmnist_tasks.registry import champion
from tests.support.airflow_home import wait_until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


def test_each_task_on_another_worker_than_the_one_before_gives_the_model_of_one_machine(
    cluster: FaultCluster, record_property: Record
) -> None:
    if not cluster.ran_on_one_worker:  # no test before had one worker only
        alone = cluster.start_worker()
        run_id = cluster.trigger_run()
        assert cluster.wait_for_end(run_id) == "success"
        cluster.check_only_release(run_id)
        cluster.empty_store()
        cluster.remove_worker(alone)
    assert cluster.ran_on_one_worker

    even, odd = (
        cluster.start_worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "even"}),
        cluster.start_worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "odd"}),
    )
    run_id = cluster.trigger_run()
    assert cluster.wait_for_end(run_id) == "success"
    hosts = [
        task["hostname"] for task in sorted(cluster.list_finished_tasks(run_id), key=lambda task: task["start_date"])
    ]
    assert hosts == [(even, odd)[number % 2].name for number in range(len(hosts))]
    assert len(hosts) == 14
    cluster.check_only_release(run_id)
    record_property("shown", f"{len(hosts)} tasks, two workers by turns, model {cluster.model_digest[:12]} as on one")


def test_a_worker_that_is_cut_off_for_two_minutes_and_comes_back_changes_nothing_twice(
    cluster: FaultCluster, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (cluster.start_worker(), cluster.start_worker())}
    run_id = cluster.trigger_run()
    lost = workers[cluster.wait_for_start(run_id)]
    lost.set_connected(False)
    cut = time.monotonic()
    state = cluster.wait_for_end(run_id)
    time.sleep(max(0, cut + 120 - time.monotonic()))  # the test asks for two minutes
    lost.set_connected(True)
    assert state == "success"
    wait_until(lambda: not lost.list_tasks())  # its own copy of the training has heard that it is no longer wanted
    task = cluster.read_tasks(run_id)["train"]
    cluster.check_only_release(run_id)
    assert cluster.list_alerts(run_id) == ["champion changed"]
    record_property(
        "shown", f"training in its {task['try_number']}. try on the other worker, one release, one promotion"
    )


def test_a_worker_whose_disk_is_full_says_so_and_another_does_it(
    cluster: FaultCluster, record_property: Record
) -> None:
    full = cluster.start_worker(disk="200m")
    run_id = cluster.trigger_run()
    cluster.wait_for_start(run_id, "validate_data")
    full.fill_disk()
    failed = wait_until(
        lambda: [task for task in cluster.read_tasks(run_id).values() if task["state"] == "up_for_retry"]
    )[0]
    step = failed["task_id"].rpartition(".")[2]
    assert "No space left on device" in cluster.find_log(full).read_text() + cluster.read_task_log(run_id, step, 1)
    cluster.remove_worker(full)
    cluster.start_worker()
    assert cluster.wait_for_end(run_id) == "success"
    cluster.check_only_release(run_id)
    assert cluster.list_alerts(run_id) == ["champion changed"]
    record_property("shown", f"{step} failed on it, said why, and was done by another")


def test_a_clock_that_is_ten_minutes_ahead_never_puts_champions_into_a_wrong_order(
    cluster: FaultCluster, record_property: Record
) -> None:
    early = cluster.start_worker(wrapper="faketime -f +10m")
    first = cluster.trigger_run()
    state = cluster.wait_for_end(first)
    cluster.remove_worker(early)
    cluster.start_worker()
    second = cluster.trigger_run(seed=1, force=True)
    assert cluster.wait_for_end(second) == "success"
    history = champion.history(cluster.store)
    assert [entry.write_id for entry in history] == ([first, second] if state == "success" else [second])
    assert champion.champion(cluster.store) == history[-1]
    record_property("shown", f"the run on it ended {state}; {len(history)} champions in the order of their runs")
