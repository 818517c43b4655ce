"""What a cluster costs and gives: Airflow's share, candidates over workers, a million images, two million to train on.

Needs root and about an hour. Each worker runs on a simulated host of its own (tests/support/hosts.py).
`make bench-cluster` prints what it measures and writes it, part by part, to docs/bench/cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench.processes import run_module
from fmnist_tasks.data.dataset import make_dataset, make_part
from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Stat, Store
from fmnist_tasks.settings import DAG_ID, PROJECT
from tests.support import synthetic
from tests.support.airflow_api import AirflowApi
from tests.support.airflow_home import Airflow, migrate, until
from tests.support.fault_cluster import FaultCluster, running
from tests.support.hosts import Host
from tests.support.minio_server import Server
from tests.support.pipeline import Line
from tests.support.ports import free_port

PARTS = ("airflow", "candidates", "predicted", "trained")
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
TRAIN, TEST = 6_000, 1_000  # synthetic images for the runs of the whole DAG
CANDIDATES = 8
WORKERS = (1, 2, 4)
PREDICTED, A_FILE, A_SHARD = 1_000_000, 10_000, 5  # images, images a file, files a shard
TRAINED, A_PART = 2_000_000, 10_000  # images, images a batch


def seconds_between(began: str, ended: str) -> float:
    """Seconds between two times as Airflow's API gives them."""
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def measure_airflow_share(api: AirflowApi, store: Store, run_id: str) -> dict[str, float]:
    """How long a run took, and how much of that was not inside its steps."""
    run = api.run(DAG_ID, run_id)
    assert run["state"] == "success", run
    tasks = [task for task in api.tasks(DAG_ID, run_id) if task["state"] == "success"]
    inside = sum(record["seconds"] for record in read_records(store, run_id).values())
    whole = seconds_between(run["start_date"], run["end_date"])
    return {"seconds": whole, "inside": inside, "tasks": len(tasks), "a_task": (whole - inside) / len(tasks)}


def measure_on_celery(cluster: FaultCluster) -> list[dict[str, float]]:
    """Three runs one after the other on Postgres and a worker: the first on an empty store."""
    cluster.clear()
    host = cluster.worker()
    results = []
    for seed in range(3):
        run_id = cluster.begin(seed=seed)
        assert cluster.ended(run_id) == "success"
        results.append(measure_airflow_share(cluster.api, cluster.store, run_id))
    cluster.take_away(host)
    return results


def measure_on_sqlite() -> list[dict[str, float]]:
    """The same on SQLite, everything in one place, as `make ui` starts it."""
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder) / "line")
        synthetic.declare(line.data, train=TRAIN, test=TEST)
        airflow = Airflow(migrate(Path(folder) / "airflow"), line)
        results = []
        with run_ui(airflow) as url:
            airflow.postpone_schedule()
            airflow.unpause(DAG_ID)
            api = airflow.api(url)
            for seed in range(1, 4):
                run_id = api.trigger(DAG_ID, {"profile": "quick", "seed": seed})
                until(partial(has_ended, airflow, run_id))
                results.append(measure_airflow_share(api, line.store, run_id) | measure_xcom(airflow, run_id))
    return results


@contextmanager
def run_ui(airflow: Airflow) -> Iterator[str]:
    """Airflow by `make ui`, with the settings that it ships, not those of the tests; its address, once it is ready."""
    port = free_port()
    environment = airflow.environment | {"PORT": str(port)}
    with subprocess.Popen([PROJECT / "include" / "ui"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while "Ctrl-C stops" not in (line := process.stdout.readline()):
                assert line, "`make ui` ended before Airflow was ready"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def has_ended(airflow: Airflow, run_id: str) -> bool:
    """Whether a run is over."""
    return airflow.state(run_id) in {"success", "failed"}


def measure_xcom(airflow: Airflow, run_id: str) -> dict[str, float]:
    """Bytes of the results of a run's tasks in Airflow's database."""
    query = f"select max(length(value)), sum(length(value)) from xcom where run_id = '{run_id}'"  # noqa: S608 - our own
    ((largest, total),) = airflow.query(query)
    return {"largest_xcom_bytes": largest, "xcom_bytes": total}


def measure_candidates(cluster: FaultCluster, workers: int) -> dict[str, Any]:
    """Eight candidates on so many workers of one thread each: how long from the first to the last."""
    cluster.clear()
    hosts = [cluster.worker(ONE_THREAD) for _ in range(workers)]
    run_id = cluster.begin(candidates=CANDIDATES)
    assert cluster.ended(run_id, 1800) == "success"
    tasks = [task for task in cluster.api.tasks(DAG_ID, run_id) if task["task_id"].endswith(".train")]
    assert len(tasks) == CANDIDATES
    records = read_records(cluster.store, run_id)
    inside = [record["seconds"] for name, record in records.items() if name.startswith("train-")]
    whole = seconds_between(min(task["start_date"] for task in tasks), max(task["end_date"] for task in tasks))
    for host in hosts:
        cluster.take_away(host)
    return {
        "workers": workers,
        "seconds": whole,
        "inside": statistics.mean(inside),
        "around": statistics.mean(seconds_between(task["start_date"], task["end_date"]) for task in tasks)
        - statistics.mean(inside),
        "hosts": len({task["hostname"] for task in tasks}),
    }


@contextmanager
def record_memory(hosts: list[Host]) -> Iterator[dict[str, list[int]]]:
    """Memory of each host's tasks, MiB, twice a second while this is open."""
    memory: dict[str, list[int]] = {host.name: [] for host in hosts}
    ended = threading.Event()

    def read_memory(process: psutil.Process) -> int:
        try:
            return int(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def record() -> None:
        while not ended.wait(0.5):
            for host in hosts:
                if amount := sum(read_memory(process) for process in host.tasks()):
                    memory[host.name].append(amount >> 20)

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def measure_prediction(cluster: FaultCluster) -> dict[str, Any]:
    """Predict a million images in shards over two workers, one of which is killed on the way."""
    cluster.clear()
    hosts = [cluster.worker(), cluster.worker()]
    assert cluster.ended(cluster.begin()) == "success"  # a champion to predict with
    for number in range(PREDICTED // A_FILE):
        cluster.store.put(f"inbox/{number:05d}.npz", synthetic.npz(images=synthetic.images(A_FILE, number)[0]))
    cluster.api.unpause("fmnist_predict")
    until(lambda: not cluster.api.running("fmnist_predict"))
    run_id = cluster.api.trigger("fmnist_predict", {"prefix": "inbox/", "files": A_SHARD})

    def shards() -> list[Stat]:
        return list(cluster.store.list(f"predictions/{run_id}/shard-"))

    with record_memory(hosts) as memory:
        until(lambda: len(shards()) >= 5, 900)
        hosts[1].kill()
        until(lambda: cluster.api.state("fmnist_predict", run_id) in {"success", "failed"}, 3600)
    run = cluster.api.run("fmnist_predict", run_id)
    assert run["state"] == "success", run
    rows = Counter(row.split(",", 1)[0] for stat in shards() for row in read_rows(cluster.store, stat))
    assert (len(rows), sum(rows.values())) == (PREDICTED, PREDICTED), "an image was lost or predicted twice"
    seconds = seconds_between(run["start_date"], run["end_date"])
    half = {name: len(values) // 2 for name, values in memory.items()}
    for host in hosts:
        cluster.take_away(host)
    return {
        "images": PREDICTED,
        "shards": len(shards()),
        "seconds": seconds,
        "images_a_second": PREDICTED / seconds,
        "peak_mib": {name: [max(values[: half[name]]), max(values[half[name] :])] for name, values in memory.items()},
    }


def read_rows(store: Store, stat: Stat) -> list[str]:
    """The rows of a shard's answers, without their names."""
    return store.get(stat.key).decode().splitlines()[1:]


def measure_training() -> dict[str, Any]:
    """One epoch on two million images that came in batches, and fitting the OOD head, from MinIO."""
    folder = Path(tempfile.mkdtemp())
    server = Server(folder / "minio")
    server.start()
    try:
        os.environ |= server.credentials
        store = server.store("larger")
        base = [make_part(store, split, split, *synthetic.images(A_PART, 1)) for split in ("train", "test")]
        batches = [
            make_part(store, "train", f"batch {number}", *synthetic.images(A_PART, number))
            for number in range(2, 2 + TRAINED // A_PART)
        ]
        dataset = folder / "dataset.json"
        dataset.write_text(json.dumps(make_dataset("made", [str(number) for number in range(10)], base, batches)))
        store_uri = server.uri("larger")
        figures: dict[str, Any] = run_module("bench.probes", "train_one_epoch", str(dataset), FMNIST_STORE=store_uri)
    finally:
        server.stop()
        shutil.rmtree(folder)
    return figures


def main() -> None:
    """Measure the parts that are chosen, print them, and write each to the file as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/cluster.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}

    def save(name: str, result: Any) -> None:
        results[name] = {"machine": machine_facts(), "result": result}
        print(name, json.dumps(result, indent=1), flush=True)
        chosen.out.write_text(json.dumps(results, indent=1) + "\n")

    if "trained" in chosen.parts:
        save("trained", measure_training())
    if "airflow" in chosen.parts:
        save("sqlite", measure_on_sqlite())
    with running(TRAIN, TEST) as cluster:
        if "airflow" in chosen.parts:
            save("celery", measure_on_celery(cluster))
        if "candidates" in chosen.parts:
            save("candidates", [measure_candidates(cluster, workers) for workers in WORKERS])
        if "predicted" in chosen.parts:
            save("predicted", measure_prediction(cluster))


if __name__ == "__main__":
    main()
