"""What a cluster costs and gives: candidates over workers, Airflow's own share, a million images.

Needs root and an hour. Everything runs on this machine, workers on hosts of their own (hosts.py). `make bench-cluster`
prints what it measures and writes docs/bench/cluster.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import made
import psutil
from airflow_home import until
from drill import Drill, running
from hosts import Host

from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Stat
from fmnist_tasks.settings import DAG_ID

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
CANDIDATES = 8
IMAGES, A_FILE, A_SHARD = 1_000_000, 10_000, 5  # images, images a file, files a shard


def seconds(task: dict[str, Any]) -> float:
    return (moment(task["end_date"]) - moment(task["start_date"])).total_seconds()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def candidates(drill: Drill, workers: int, threads: int) -> dict[str, Any]:
    """Eight candidates on so many workers of one thread each: how long from the first to the last."""
    drill.clear()
    hosts = [drill.worker(ONE_THREAD if threads == 1 else {}) for _ in range(workers)]
    run_id = drill.begin(candidates=CANDIDATES)
    assert drill.ended(run_id, 1800) == "success"
    tasks = [task for task in drill.api.tasks(DAG_ID, run_id) if task["task_id"].endswith(".train")]
    assert len(tasks) == CANDIDATES
    records = read_records(drill.store, run_id)
    inside = [record["seconds"] for name, record in records.items() if name.startswith("train-")]
    first, last = min(task["start_date"] for task in tasks), max(task["end_date"] for task in tasks)
    for host in hosts:
        drill.take_away(host)
    return {
        "workers": workers,
        "seconds": (moment(last) - moment(first)).total_seconds(),
        "training": statistics.mean(inside),
        "around": statistics.mean(seconds(task) for task in tasks) - statistics.mean(inside),
        "hosts": sorted({task["hostname"] for task in tasks}),
    }


def overhead(drill: Drill) -> dict[str, Any]:
    """A whole run, and one that finds nothing new: what they take beyond the seconds inside their steps."""
    drill.clear()
    host = drill.worker()
    found = {}
    for name, parameters in (("whole", {}), ("unchanged", {})):
        run_id = drill.begin(**parameters)
        assert drill.ended(run_id) == "success"
        run = drill.api.ask("GET", drill.api.run_path(DAG_ID, run_id))
        whole = (moment(run["end_date"]) - moment(run["queued_at"])).total_seconds()
        inside = sum(record["seconds"] for record in read_records(drill.store, run_id).values())
        tasks = len(drill.ran(run_id))
        found[name] = {"seconds": whole, "inside": inside, "tasks": tasks, "beyond_a_task": (whole - inside) / tasks}
    drill.take_away(host)
    return found


@contextmanager
def peaks(hosts: list[Host]) -> Iterator[dict[str, int]]:
    """The most memory that each host's tasks had at once, MiB, while this is open."""
    found, ended = {host.name: 0 for host in hosts}, threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            for host in hosts:
                used = 0
                for process in host.tasks():
                    try:
                        used += process.memory_info().rss
                    except psutil.NoSuchProcess:
                        continue
                found[host.name] = max(found[host.name], used // 2**20)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def shards_done(drill: Drill, run_id: str) -> list[Stat]:
    return list(drill.store.list(f"predictions/{run_id}/shard-"))


def million(drill: Drill) -> dict[str, Any]:
    """A million images in shards over two workers, one of which is killed on the way."""
    first = drill.worker()
    run_id = drill.begin()
    assert drill.ended(run_id) == "success"
    images = made.images(A_FILE, 9)[0]
    for number in range(IMAGES // A_FILE):
        drill.store.put(f"inbox/{number:05d}.npz", made.npz(images=images))
    hosts = [first, drill.worker()]
    drill.api.unpause("fmnist_predict")
    until(lambda: not drill.api.running("fmnist_predict"))
    with peaks(hosts) as memory:
        began = time.monotonic()
        run_id = drill.api.trigger("fmnist_predict", {"prefix": "inbox/", "files": A_SHARD})
        done = partial(shards_done, drill, run_id)
        until(lambda: len(done()) >= 3, 900)
        hosts[1].kill()
        until(lambda: drill.api.state("fmnist_predict", run_id) in {"success", "failed"}, 3600)
        took = time.monotonic() - began
    rows = [line for stat in done() for line in drill.store.get(stat.key).decode().splitlines()[1:]]
    names = {row.split(",", 1)[0] for row in rows}
    assert (len(rows), len(names)) == (IMAGES, IMAGES), "an image is lost or doubled"
    for host in hosts:
        drill.take_away(host)
    return {
        "images": IMAGES,
        "seconds": took,
        "images_a_second": IMAGES / took,
        "memory": memory,
        "shards": len(done()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found: dict[str, Any] = {"machine": machine_facts()}

    def keep(name: str, result: Any) -> None:
        found[name] = result
        print(name, json.dumps(result, indent=1), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")

    with running(12_000, 2_000) as drill:
        keep("overhead", overhead(drill))
        keep("candidates", [candidates(drill, workers, 1) for workers in (1, 2, 4)])
        drill.clear()
        keep("million", million(drill))


if __name__ == "__main__":
    main()
