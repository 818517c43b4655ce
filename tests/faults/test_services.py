"""Parts of Airflow and stores that are away for a while."""

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


def test_every_part_of_airflow_may_die_in_a_run(cluster: FaultCluster, record_property: Record) -> None:
    cluster.start_worker()
    run_id = cluster.trigger_run()
    cluster.wait_for_start(run_id, "ingest")
    back = {}
    for name in ("scheduler", "dag-processor", "api-server", "triggerer"):
        began = time.monotonic()
        killed = cluster.supervisor.find_pid(name)
        for process in [*psutil.Process(killed).children(recursive=True), psutil.Process(killed)]:
            with suppress(psutil.NoSuchProcess):  # one that read a DAG file, and is done
                process.kill()
        wait_until(lambda name=name, killed=killed: cluster.supervisor.find_pid(name) not in {0, killed})
        cluster.wait_until_healthy(name)
        back[name] = f"{name} back after {time.monotonic() - began:.0f} s"
    assert cluster.wait_for_end(run_id) == "success"
    cluster.check_only_release(run_id)
    record_property("shown", ", ".join(back.values()))


def test_each_store_may_be_away_for_a_while(cluster: FaultCluster, record_property: Record) -> None:
    cluster.start_worker()
    run_id = cluster.trigger_run()
    away = {"train": ("minio", 120), "fine_tune": ("redis", 60), "evaluate_tuned": ("postgres", 60)}
    for step, (store, seconds) in away.items():
        cluster.wait_for_start(run_id, step)
        cluster.supervisor.stop_program(store)
        time.sleep(seconds)  # the test asks for so many
        cluster.supervisor.start_program(store)
        cluster.wait_until_healthy(store)
    assert cluster.wait_for_end(run_id) == "success"
    cluster.check_only_release(run_id)
    tries = {name: task["try_number"] for name, task in cluster.read_tasks(run_id).items() if task["try_number"] > 1}
    record_property("shown", f"{away}: tried again {tries or 'nothing'}")
