"""Thirty weekly runs in a row, each with a small batch: only results that are meant to be stored accumulate."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from fmnist_tasks.registry import pruning
from fmnist_tasks.registry.releases import list_versions
from tests.support import synthetic
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive
WEEKS, BATCH_SIZE = 30, 10  # runs, and new images before each
KEEP = 5  # releases, when pruning
SERVICES = ("scheduler", "dag-processor", "triggerer", "api-server")


def measure_memory(cluster: FaultCluster) -> list[int]:
    """Memory (proportional set size, bytes) of each process of Airflow's services and of the workers."""
    parents = [psutil.Process(cluster.supervisor.find_pid(name)) for name in SERVICES]
    parents += [psutil.Process(host.process.pid) for host in cluster.workers if host.process]
    sizes = []
    for process in (process for parent in parents for process in (parent, *parent.children(recursive=True))):
        with suppress(psutil.NoSuchProcess):  # a process that parses a DAG file may have just ended
            sizes.append(process.memory_full_info().pss)
    return sizes


def count_xcom_rows(cluster: FaultCluster) -> int:
    """The number of XCom rows in Airflow's database."""
    secret = {"PGPASSWORD": cluster.local_cluster.provide_settings()["METADATA_PASSWORD"]}
    command = ["psql", "-h", cluster.address, "-U", "airflow", "-d", "airflow", "-Atc", "select count(*) from xcom"]
    return int(subprocess.run(command, env=os.environ | secret, capture_output=True, text=True, check=True).stdout)


def list_folders(cluster: FaultCluster, parent: str) -> set[str]:
    """Names of the folders below a folder of the store, such as runs or releases."""
    return {stat.key.split("/")[1] for stat in cluster.store.list(f"{parent}/")}


def run_week(cluster: FaultCluster, number: int) -> dict[str, float]:
    """Run the pipeline with a new batch, and return time, memory and number of stored results."""
    pixels, labels = synthetic.make_images(BATCH_SIZE, 100 + number)
    cluster.store.put(f"incoming/week-{number:02d}.npz", synthetic.encode_npz(images=pixels, labels=labels))
    start = time.monotonic()
    assert cluster.wait_for_end(cluster.trigger_run()) == "success"
    seconds, memory = time.monotonic() - start, measure_memory(cluster)
    return {
        "seconds": round(seconds, 1),
        "MiB": sum(memory) >> 20,
        "processes": len(memory),
        "XCom rows": count_xcom_rows(cluster),
        "releases": len(list_versions(cluster.store)),
        "runs": len(list_folders(cluster, "runs")),
        "checkpoints": len(list_folders(cluster, "checkpoints")),
        "incoming": len(list(cluster.store.list("incoming/"))),
    }


def test_thirty_weekly_runs_accumulate_only_results(
    cluster: FaultCluster, record_property: Callable[[str, object], None]
) -> None:
    cluster.start_worker()
    table = []
    for number in range(1, WEEKS + 1):
        table.append(run_week(cluster, number))
        print(number, table[-1], flush=True)
    early, late = table[5:10], table[-5:]

    def compute_growth(name: str) -> float:
        return statistics.mean(row[name] for row in late) / statistics.mean(row[name] for row in early) - 1

    assert compute_growth("MiB") < 0.1
    # The minimum, since parsing a DAG file briefly takes one more process.
    assert min(row["processes"] for row in late) <= min(row["processes"] for row in early)
    assert {(row["checkpoints"], row["incoming"]) for row in table} == {(0, 0)}
    # Each run leaves the same number of rows, which `airflow db clean` deletes, and a folder and at most one release,
    # which `fmnist prune` deletes.
    assert len({after["XCom rows"] - before["XCom rows"] for before, after in itertools.pairwise(table)}) == 1
    assert [row["runs"] for row in table] == list(range(1, WEEKS + 1))
    assert table[-1]["releases"] <= WEEKS

    plan = pruning.plan_pruning(cluster.store, keep=KEEP, older_than=timedelta(0), now=datetime.now(UTC))
    pruning.execute_plan(cluster.store, plan, lambda: None)
    releases, runs = list_folders(cluster, "releases"), list_folders(cluster, "runs")
    assert KEEP <= len(releases) <= KEEP + 2  # the newest ones, the champion, and the one before it
    assert len(runs) == len(releases)
    record_property(
        "summary",
        f"memory {table[0]['MiB']}, {early[0]['MiB']}, {late[-1]['MiB']} MiB after the first, sixth and last run; "
        f"{table[0]['processes']}, {late[-1]['processes']} processes; time of a run {compute_growth('seconds'):+.0%}; "
        f"{table[-1]['releases']} releases, {len(releases)} after pruning"
        + "".join(f"\n{number:4} {table[number - 1]}" for number in (1, *range(5, WEEKS + 1, 5))),
    )
