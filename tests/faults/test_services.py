"""Parts of Airflow and stores that are away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from tests.support.airflow_home import until
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]


def test_every_part_of_airflow_may_die_in_a_run(cluster: FaultCluster, record_property: Record) -> None:
    cluster.worker()
    run_id = cluster.begin()
    cluster.begun(run_id, "ingest")
    back = {}
    for name in ("scheduler", "dag-processor", "api-server", "triggerer"):
        began = time.monotonic()
        killed = cluster.supervisor.pid(name)
        for process in [*psutil.Process(killed).children(recursive=True), psutil.Process(killed)]:
            with suppress(psutil.NoSuchProcess):  # one that read a DAG file, and is done
                process.kill()
        until(lambda name=name, killed=killed: cluster.supervisor.pid(name) not in {0, killed})
        cluster.well(name)
        back[name] = f"{name} back after {time.monotonic() - began:.0f} s"
    assert cluster.ended(run_id) == "success"
    cluster.one_release(run_id)
    record_property("shown", ", ".join(back.values()))


def test_each_store_may_be_away_for_a_while(cluster: FaultCluster, record_property: Record) -> None:
    cluster.worker()
    run_id = cluster.begin()
    away = {"train": ("minio", 120), "fine_tune": ("redis", 60), "evaluate_tuned": ("postgres", 60)}
    for step, (store, seconds) in away.items():
        cluster.begun(run_id, step)
        cluster.supervisor.stop(store)
        time.sleep(seconds)  # the test asks for so many
        cluster.supervisor.start(store)
        cluster.well(store)
    assert cluster.ended(run_id) == "success"
    cluster.one_release(run_id)
    tries = {name: task["try_number"] for name, task in cluster.tasks(run_id).items() if task["try_number"] > 1}
    record_property("shown", f"{away}: tried again {tries or 'nothing'}")
