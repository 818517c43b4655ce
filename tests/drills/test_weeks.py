"""Thirty weeks in a row, a small batch each: nothing grows but what is meant to be kept."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import time

import made
import psutil
import pytest
from drill import Drill

from fmnist_tasks.registry.releases import versions

pytestmark = [pytest.mark.slow, pytest.mark.drill]
IMAGES = (1_600, 600)
WEEKS = 30
LASTING = ("scheduler", "dag-processor", "triggerer", "api-server")


def processes(drill: Drill) -> list[psutil.Process]:
    """What stays between two runs: Airflow's services and the worker, with their children."""
    first = [psutil.Process(drill.supervisor.pid(name)) for name in LASTING]
    first += [psutil.Process(host.process.pid) for host in drill.workers if host.process]
    return [one for process in first for one in (process, *process.children(recursive=True))]


def rows(drill: Drill, table: str) -> int:
    """How many rows a table of Airflow's database has."""
    secret = {"PGPASSWORD": drill.cluster.settings()["POSTGRES_PASSWORD"]}
    question = f"select count(*) from {table}"  # noqa: S608 - names of our own
    command = ["psql", "-h", drill.address, "-U", "airflow", "-d", "airflow", "-Atc", question]
    return int(subprocess.run(command, env=os.environ | secret, capture_output=True, text=True, check=True).stdout)


def test_thirty_weeks_in_a_row(drill: Drill, record_property: pytest.RecordProperty) -> None:
    drill.worker()
    table = []
    for week in range(WEEKS):
        pixels, labels = made.images(40, 100 + week)
        drill.store.put(f"incoming/week-{week:02d}.npz", made.npz(images=pixels, labels=labels))
        began = time.monotonic()
        run_id = drill.begin()
        assert drill.ended(run_id) == "success"
        lasting = processes(drill)
        table.append(
            {
                "week": week + 1,
                "seconds": round(time.monotonic() - began, 1),
                "memory_mib": sum(process.memory_info().rss for process in lasting) // 2**20,
                "processes": len(lasting),
                "xcom_rows": rows(drill, "xcom"),
                "task_instances": rows(drill, "task_instance"),
                "releases": len(versions(drill.store)),
                "checkpoints": len(list(drill.store.list("checkpoints/"))),
                "incoming": len(list(drill.store.list("incoming/"))),
            }
        )
        print(table[-1], flush=True)
    early, late = table[5:10], table[-5:]

    def grown(name: str) -> float:
        return statistics.mean(row[name] for row in late) / statistics.mean(row[name] for row in early)

    assert grown("memory_mib") < 1.1
    assert {row["processes"] for row in late} <= {row["processes"] for row in early}
    assert {(row["checkpoints"], row["incoming"]) for row in table} == {(0, 0)}
    # Every run leaves the same number of rows, until `airflow db clean`, and one release at most, until `fmnist prune`.
    assert len({after["xcom_rows"] - before["xcom_rows"] for before, after in itertools.pairwise(table)}) == 1
    assert table[-1]["releases"] <= WEEKS
    record_property(
        "shown", f"{WEEKS} runs, memory {grown('memory_mib') - 1:+.1%}, run time {grown('seconds') - 1:+.1%}"
    )
