"""Thirty weeks in a row, a small batch each: nothing grows but what is meant to be kept."""

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
from fmnist_tasks.registry.releases import versions
from tests.support import synthetic
from tests.support.fault_cluster import FaultCluster

pytestmark = pytest.mark.exhaustive
WEEKS, A_WEEK = 30, 10  # runs, and new images before each
KEPT = 5  # releases
LASTING = ("scheduler", "dag-processor", "triggerer", "api-server")


def memory(cluster: FaultCluster) -> list[int]:
    """Bytes of each process that stays between two runs: Airflow's services and the worker, with their children."""
    first = [psutil.Process(cluster.supervisor.find_pid(name)) for name in LASTING]
    first += [psutil.Process(host.process.pid) for host in cluster.workers if host.process]
    found = []
    for one in (one for process in first for one in (process, *process.children(recursive=True))):
        with suppress(psutil.NoSuchProcess):  # one that read a DAG file, and is done
            found.append(one.memory_full_info().pss)
    return found


def xcom_rows(cluster: FaultCluster) -> int:
    """How many rows of XCom Airflow's database has."""
    secret = {"PGPASSWORD": cluster.local_cluster.provide_settings()["METADATA_PASSWORD"]}
    command = ["psql", "-h", cluster.address, "-U", "airflow", "-d", "airflow", "-Atc", "select count(*) from xcom"]
    return int(subprocess.run(command, env=os.environ | secret, capture_output=True, text=True, check=True).stdout)


def folders(cluster: FaultCluster, kind: str) -> set[str]:
    """What lies in the store under that kind: names of runs, of releases."""
    return {stat.key.split("/")[1] for stat in cluster.store.list(f"{kind}/")}


def week(cluster: FaultCluster, number: int) -> dict[str, float]:
    """One run with a new batch, and what there is after it."""
    pixels, labels = synthetic.make_images(A_WEEK, 100 + number)
    cluster.store.put(f"incoming/week-{number:02d}.npz", synthetic.encode_npz(images=pixels, labels=labels))
    began = time.monotonic()
    assert cluster.wait_for_end(cluster.trigger_run()) == "success"
    seconds, lasting = time.monotonic() - began, memory(cluster)
    return {
        "seconds": round(seconds, 1),
        "MiB": sum(lasting) >> 20,
        "processes": len(lasting),
        "XCom rows": xcom_rows(cluster),
        "releases": len(versions(cluster.store)),
        "runs": len(folders(cluster, "runs")),
        "checkpoints": len(folders(cluster, "checkpoints")),
        "incoming": len(list(cluster.store.list("incoming/"))),
    }


def test_thirty_weeks_in_a_row(cluster: FaultCluster, record_property: Callable[[str, object], None]) -> None:
    cluster.start_worker()
    table = []
    for number in range(1, WEEKS + 1):
        table.append(week(cluster, number))
        print(number, table[-1], flush=True)
    early, late = table[5:10], table[-5:]

    def grown(name: str) -> float:
        return statistics.mean(row[name] for row in late) / statistics.mean(row[name] for row in early) - 1

    assert grown("MiB") < 0.1
    # Reading a DAG file takes one more for a moment.
    assert min(row["processes"] for row in late) <= min(row["processes"] for row in early)
    assert {(row["checkpoints"], row["incoming"]) for row in table} == {(0, 0)}
    # Every run leaves the same rows, until `airflow db clean`, a folder and one release at most, until `fmnist prune`.
    assert len({after["XCom rows"] - before["XCom rows"] for before, after in itertools.pairwise(table)}) == 1
    assert [row["runs"] for row in table] == list(range(1, WEEKS + 1))
    assert table[-1]["releases"] <= WEEKS

    plan = pruning.plan(cluster.store, keep=KEPT, older_than=timedelta(0), now=datetime.now(UTC))
    pruning.carry_out(cluster.store, plan, lambda: None)
    left = folders(cluster, "releases"), folders(cluster, "runs")
    assert KEPT <= len(left[0]) <= KEPT + 2  # the newest, the champion, and the one before it
    assert len(left[1]) == len(left[0])
    record_property(
        "shown",
        f"memory {table[0]['MiB']}, {early[0]['MiB']}, {late[-1]['MiB']} MiB after the first, sixth, last run; "
        f"{table[0]['processes']}, {late[-1]['processes']} processes; seconds of a run {grown('seconds'):+.0%}; "
        f"{table[-1]['releases']} releases, {len(left[0])} after pruning"
        + "".join(f"\n{number:4} {table[number - 1]}" for number in (1, *range(5, WEEKS + 1, 5))),
    )
