"""Services of Airflow are killed, and stores are down for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from tests.support.airflow_home import wait_until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


def test_a_run_survives_the_loss_of_each_service_of_airflow(cluster: FaultCluster, record_property: Record) -> None:
    cluster.start_worker()
    run_id = cluster.trigger_run()
    cluster.wait_for_start(run_id, "ingest")
    recoveries = []
    for name in ("scheduler", "dag-processor", "api-server", "triggerer"):
        start = time.monotonic()
        killed = cluster.supervisor.find_pid(name)
        for process in [*psutil.Process(killed).children(recursive=True), psutil.Process(killed)]:
            with suppress(psutil.NoSuchProcess):  # a process that parses a DAG file may have just ended
                process.kill()
        wait_until(lambda name=name, killed=killed: cluster.supervisor.find_pid(name) not in {0, killed})
        cluster.wait_until_healthy(name)
        recoveries.append(f"{name} healthy after {time.monotonic() - start:.0f} s")
    assert cluster.wait_for_end(run_id) == "success"
    cluster.check_only_release(run_id)
    record_property("summary", ", ".join(recoveries))


def test_a_run_survives_an_outage_of_each_store(cluster: FaultCluster, record_property: Record) -> None:
    cluster.start_worker()
    run_id = cluster.trigger_run()
    outages = {"train": ("minio", 120), "fine_tune": ("redis", 60), "evaluate_tuned": ("postgres", 60)}  # seconds
    for step, (store, seconds) in outages.items():
        cluster.wait_for_start(run_id, step)
        cluster.supervisor.stop_program(store)
        time.sleep(seconds)
        cluster.supervisor.start_program(store)
        cluster.wait_until_healthy(store)
    assert cluster.wait_for_end(run_id) == "success"
    cluster.check_only_release(run_id)
    attempts = {name: task["try_number"] for name, task in cluster.read_tasks(run_id).items() if task["try_number"] > 1}
    record_property("summary", f"{outages}: attempts of retried tasks: {attempts or 'none'}")
