"""`make bench-cluster`: Airflow's overhead, candidates on several workers, and prediction and training at scale.

Needs root and about an hour. Each worker runs on a separate simulated host (tests/support/hosts.py). As soon as a part
ends, its result is printed and written to docs/bench/cluster.json.
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
from fmnist_tasks.data.dataset import make_dataset, save_images
from fmnist_tasks.provenance import describe_machine
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Stat, Store
from fmnist_tasks.settings import DAG_ID, PROJECT
from tests.support import synthetic
from tests.support.airflow_api import AirflowApi
from tests.support.airflow_home import UNSCHEDULED, AirflowInstallation, copy_migrated_home, wait_until
from tests.support.fault_cluster import FaultCluster, run_fault_cluster
from tests.support.hosts import Host
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.ports import reserve_port

PARTS = ("airflow", "candidates", "predicted", "trained")
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
TRAIN_IMAGES, TEST_IMAGES = 6_000, 1_000  # synthetic images for the runs of the whole DAG
CANDIDATES = 8
WORKERS = (1, 2, 4)
PREDICTED_IMAGES, IMAGES_PER_FILE, FILES_PER_SHARD = 1_000_000, 10_000, 5
TRAINED_IMAGES, IMAGES_PER_BATCH = 2_000_000, 10_000


def compute_seconds_between(start: str, end: str) -> float:
    """Seconds between two times in the format of Airflow's API."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def measure_airflow_overhead(api: AirflowApi, store: Store, run_id: str) -> dict[str, float]:
    """The duration of a run, and how much of it was outside its steps."""
    run = api.read_run(DAG_ID, run_id)
    assert run["state"] == "success", run
    tasks = [task for task in api.list_tasks(DAG_ID, run_id) if task["state"] == "success"]
    in_steps = sum(record.seconds for record in read_records(store, run_id).values())
    duration = compute_seconds_between(run["start_date"], run["end_date"])
    overhead = (duration - in_steps) / len(tasks)
    return {"seconds": duration, "seconds_in_steps": in_steps, "tasks": len(tasks), "overhead_per_task": overhead}


def measure_on_celery(cluster: FaultCluster) -> list[dict[str, float]]:
    """Measure three consecutive runs on Postgres and one worker, from an empty store."""
    cluster.empty_store()
    host = cluster.start_worker()
    results = []
    for seed in range(3):
        run_id = cluster.trigger_run(seed=seed)
        assert cluster.wait_for_end(run_id) == "success"
        results.append(measure_airflow_overhead(cluster.api, cluster.store, run_id))
    cluster.remove_worker(host)
    return results


def measure_on_sqlite() -> list[dict[str, float]]:
    """Measure three consecutive runs on SQLite, as `make ui` starts it."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder) / "pipeline")
        synthetic.write_dataset(pipeline.data, train=TRAIN_IMAGES, test=TEST_IMAGES)
        airflow = AirflowInstallation(copy_migrated_home(Path(folder) / "airflow"), pipeline, UNSCHEDULED)
        results = []
        with run_ui(airflow) as url:
            airflow.unpause_dag(DAG_ID)
            api = airflow.open_api(url)
            for seed in range(1, 4):
                run_id = api.trigger_run(DAG_ID, {"profile": "quick", "seed": seed})
                wait_until(partial(has_ended, airflow, run_id))
                results.append(measure_airflow_overhead(api, pipeline.store, run_id) | measure_xcom(airflow, run_id))
    return results


@contextmanager
def run_ui(airflow: AirflowInstallation) -> Iterator[str]:
    """Start Airflow with `make ui`, with its own settings instead of those of the tests; yields its address."""
    port = reserve_port()
    environment = airflow.environment | {"PORT": str(port)}
    with subprocess.Popen([PROJECT / "include" / "ui"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while "Ctrl-C stops" not in (line := process.stdout.readline()):
                assert line, "`make ui` ended before Airflow was ready"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def has_ended(airflow: AirflowInstallation, run_id: str) -> bool:
    """Whether a run has ended."""
    return airflow.read_run_state(run_id) in {"success", "failed"}


def measure_xcom(airflow: AirflowInstallation, run_id: str) -> dict[str, float]:
    """Bytes of a run's XCom values in Airflow's database: the largest one, and all."""
    query = f"select max(length(value)), sum(length(value)) from xcom where run_id = '{run_id}'"  # noqa: S608 - our own
    ((largest, total),) = airflow.query_database(query)
    return {"largest_xcom_bytes": largest, "xcom_bytes": total}


def measure_candidates(cluster: FaultCluster, workers: int) -> dict[str, Any]:
    """Measure eight candidates on workers with one thread each, from the start of the first to the end of the last."""
    cluster.empty_store()
    hosts = [cluster.start_worker(ONE_THREAD) for _ in range(workers)]
    run_id = cluster.trigger_run(candidates=CANDIDATES)
    assert cluster.wait_for_end(run_id, 1800) == "success"
    tasks = [task for task in cluster.api.list_tasks(DAG_ID, run_id) if task["task_id"].endswith(".train")]
    assert len(tasks) == CANDIDATES
    records = read_records(cluster.store, run_id)
    in_step = [record.seconds for name, record in records.items() if name.startswith("train-")]
    duration = compute_seconds_between(
        min(task["start_date"] for task in tasks), max(task["end_date"] for task in tasks)
    )
    for host in hosts:
        cluster.remove_worker(host)
    return {
        "workers": workers,
        "seconds": duration,
        "seconds_in_step": statistics.mean(in_step),
        "overhead": statistics.mean(compute_seconds_between(task["start_date"], task["end_date"]) for task in tasks)
        - statistics.mean(in_step),
        "hosts": len({task["hostname"] for task in tasks}),
    }


@contextmanager
def record_memory(hosts: list[Host]) -> Iterator[dict[str, list[int]]]:
    """Record the memory of each host's tasks, in MiB, twice a second."""
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
                if rss := sum(read_memory(process) for process in host.list_tasks()):
                    memory[host.name].append(rss >> 20)

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def measure_prediction(cluster: FaultCluster) -> dict[str, Any]:
    """Measure the prediction of a million images in shards on two workers, one of which is killed meanwhile."""
    cluster.empty_store()
    hosts = [cluster.start_worker(), cluster.start_worker()]
    assert cluster.wait_for_end(cluster.trigger_run()) == "success"  # a champion to predict with
    for number in range(PREDICTED_IMAGES // IMAGES_PER_FILE):
        cluster.store.put(
            f"inbox/{number:05d}.npz", synthetic.encode_npz(images=synthetic.make_images(IMAGES_PER_FILE, number)[0])
        )
    cluster.api.unpause_dag("fmnist_predict")
    wait_until(lambda: not cluster.api.list_active_runs("fmnist_predict"))
    run_id = cluster.api.trigger_run("fmnist_predict", {"prefix": "inbox/", "files": FILES_PER_SHARD})

    def shards() -> list[Stat]:
        return list(cluster.store.list(f"predictions/{run_id}/shard-"))

    with record_memory(hosts) as memory:
        wait_until(lambda: len(shards()) >= 5, 900)
        hosts[1].kill()
        wait_until(lambda: cluster.api.read_run_state("fmnist_predict", run_id) in {"success", "failed"}, 3600)
    run = cluster.api.read_run("fmnist_predict", run_id)
    assert run["state"] == "success", run
    rows = Counter(row.split(",", 1)[0] for stat in shards() for row in read_rows(cluster.store, stat))
    assert (len(rows), sum(rows.values())) == (PREDICTED_IMAGES, PREDICTED_IMAGES), (
        "an image was lost or predicted twice"
    )
    seconds = compute_seconds_between(run["start_date"], run["end_date"])
    half = {name: len(values) // 2 for name, values in memory.items()}
    for host in hosts:
        cluster.remove_worker(host)
    return {
        "images": PREDICTED_IMAGES,
        "shards": len(shards()),
        "seconds": seconds,
        "images_per_second": PREDICTED_IMAGES / seconds,
        "peak_mib": {name: [max(values[: half[name]]), max(values[half[name] :])] for name, values in memory.items()},
    }


def read_rows(store: Store, stat: Stat) -> list[str]:
    """The rows of a shard's predictions, without the header."""
    return store.get(stat.key).decode().splitlines()[1:]


def measure_training() -> dict[str, Any]:
    """Measure one epoch on two million images from batches, and fitting the OOD head, on MinIO."""
    folder = Path(tempfile.mkdtemp())
    minio_server = MinioServer(folder / "minio")
    minio_server.start()
    try:
        os.environ |= minio_server.credentials
        store = minio_server.open_store("larger")
        base = [
            save_images(store, split, split, *synthetic.make_images(IMAGES_PER_BATCH, 1)) for split in ("train", "test")
        ]
        batches = [
            save_images(store, "train", f"batch {number}", *synthetic.make_images(IMAGES_PER_BATCH, number))
            for number in range(2, 2 + TRAINED_IMAGES // IMAGES_PER_BATCH)
        ]
        dataset = folder / "dataset.json"
        dataset.write_text(make_dataset(synthetic.PROPERTIES, base, batches).model_dump_json())
        store_uri = minio_server.build_uri("larger")
        metrics: dict[str, Any] = run_module(
            "bench.measurements", "train_one_epoch", str(dataset), FMNIST_STORE=store_uri
        )
    finally:
        minio_server.stop()
        shutil.rmtree(folder)
    return metrics


def main() -> None:
    """Measure the selected parts. Print each result and write it to the file as soon as its part ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/cluster.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def save(name: str, result: Any) -> None:
        results[name] = {"machine": describe_machine(), "result": result}
        print(name, json.dumps(result, indent=1), flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    if "trained" in options.parts:
        save("trained", measure_training())
    if "airflow" in options.parts:
        save("sqlite", measure_on_sqlite())
    with run_fault_cluster(TRAIN_IMAGES, TEST_IMAGES) as cluster:
        if "airflow" in options.parts:
            save("celery", measure_on_celery(cluster))
        if "candidates" in options.parts:
            save("candidates", [measure_candidates(cluster, workers) for workers in WORKERS])
        if "predicted" in options.parts:
            save("predicted", measure_prediction(cluster))


if __name__ == "__main__":
    main()
