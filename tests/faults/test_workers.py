"""Workers that share only the network: one loses it, one has a full disk, one has a wrong clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fmnist_tasks.registry import champion
from tests.support.airflow_home import wait_until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


def test_tasks_on_alternating_workers_give_the_same_model_as_one_worker(
    cluster: FaultCluster, record_property: Record
) -> None:
    if not cluster.ran_on_one_worker:  # no earlier test has used a single worker
        worker = cluster.start_worker()
        run_id = cluster.trigger_run()
        assert cluster.wait_for_end(run_id) == "success"
        cluster.check_only_release(run_id)
        cluster.empty_store()
        cluster.remove_worker(worker)
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
    assert len(hosts) == 13
    cluster.check_only_release(run_id)
    record_property(
        "summary", f"{len(hosts)} tasks on alternating workers, model {cluster.model_digest[:12]} as on one worker"
    )


def test_a_worker_that_loses_its_network_for_two_minutes_changes_nothing_twice(
    cluster: FaultCluster, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (cluster.start_worker(), cluster.start_worker())}
    run_id = cluster.trigger_run()
    lost = workers[cluster.wait_for_start(run_id)]
    lost.set_connected(False)
    start = time.monotonic()
    state = cluster.wait_for_end(run_id)
    time.sleep(max(0, start + 120 - time.monotonic()))
    lost.set_connected(True)
    assert state == "success"
    wait_until(lambda: not lost.list_tasks())  # Airflow stops its copy of the training
    task = cluster.read_tasks(run_id)["train"]
    cluster.check_only_release(run_id)
    assert cluster.list_alerts(run_id) == ["champion changed"]
    record_property(
        "summary", f"training succeeded on the other worker, attempt {task['try_number']}; one release, one promotion"
    )


def test_a_task_on_a_full_disk_reports_it_and_succeeds_on_another_worker(
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
    record_property("summary", f"{step} failed, reported the full disk, and succeeded on another worker")


def test_champions_stay_in_order_if_a_clock_is_ten_minutes_ahead(
    cluster: FaultCluster, record_property: Record
) -> None:
    ahead = cluster.start_worker(wrapper="faketime -f +10m")
    first = cluster.trigger_run()
    state = cluster.wait_for_end(first)
    cluster.remove_worker(ahead)
    cluster.start_worker()
    second = cluster.trigger_run(seed=1, force=True)
    assert cluster.wait_for_end(second) == "success"
    history = champion.list_entries(cluster.store)
    assert [entry.write_id for entry in history] == ([first, second] if state == "success" else [second])
    assert champion.find_champion(cluster.store) == history[-1]
    record_property("summary", f"state of the run on it: {state}; {len(history)} champions in the order of their runs")
