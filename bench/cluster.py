"""What a cluster costs and gives: Airflow's share, candidates over workers, a million images, two million to train on.

Needs root and most of an hour. Everything runs on this machine, workers on hosts of their own (hosts.py).
`make bench-cluster` prints what it measures and writes it, part by part, to docs/bench/cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from fmnist_tasks.data.dataset import make_dataset, make_part
from fmnist_tasks.provenance import machine_facts
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Stat, Store
from fmnist_tasks.settings import DAG_ID
from tests.support import synthetic
from tests.support.airflow_api import AirflowApi
from tests.support.airflow_home import Airflow, migrate, until
from tests.support.fault_cluster import Drill, running
from tests.support.hosts import Host
from tests.support.minio_server import Server
from tests.support.pipeline import Line

PARTS = ("airflow", "candidates", "predicted", "trained")
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
TRAIN, TEST = 6_000, 1_000  # made images for the runs of the whole DAG
CANDIDATES = 8
WORKERS = (1, 2, 4)
PREDICTED, A_FILE, A_SHARD = 1_000_000, 10_000, 5  # images, images a file, files a shard
TRAINED, A_PART = 2_000_000, 10_000  # images, images a batch

_TRAIN = r"""
import json, re, sys, time
from dataclasses import replace
from pathlib import Path
from fmnist_tasks.data.dataset import load
from fmnist_tasks.model import cnn, novelty, training
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import PROFILES, Settings
store, dataset = open_store(Settings.from_environment().store), json.loads(Path(sys.argv[1]).read_text())
clock = time.monotonic()
arrays, quick = load(store, dataset), PROFILES["quick"]
profile = replace(quick, base=replace(quick.base, epochs=1))
fit = training.train(arrays, 10, profile, 0, Checkpoints(store, "bench", "base", {}))
epoch = fit.curves["seconds"][0]
classifier = cnn.trained(profile, 10, fit.model)
novelty.publishable(cnn.published(profile, 10, classifier, 1.0), arrays.training)
# Not the resource usage, which begins with what the process had that started this one.
kilobytes = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({
    "images": len(arrays.training),
    "windows": len(arrays.training.sizes),
    "epoch_seconds": epoch,
    "images_a_second": len(arrays.training) / epoch,
    "validation_accuracy": fit.curves["val_accuracy"][0],
    "seconds": time.monotonic() - clock,
    "peak_mib": kilobytes / 1024,
}))
"""


def took(began: str, ended: str) -> float:
    """Seconds between two times as Airflow's API tells them."""
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def share_of_airflow(api: AirflowApi, store: Store, run_id: str) -> dict[str, float]:
    """How long a run took, and how much of that was not inside its steps."""
    run = api.run(DAG_ID, run_id)
    assert run["state"] == "success", run
    tasks = [task for task in api.tasks(DAG_ID, run_id) if task["state"] == "success"]
    inside = sum(record["seconds"] for record in read_records(store, run_id).values())
    whole = took(run["start_date"], run["end_date"])
    return {"seconds": whole, "inside": inside, "tasks": len(tasks), "a_task": (whole - inside) / len(tasks)}


def on_celery(drill: Drill) -> list[dict[str, float]]:
    """Three runs one after the other on Postgres and a worker: the first on an empty store."""
    drill.clear()
    host = drill.worker()
    found = []
    for seed in range(3):
        run_id = drill.begin(seed=seed)
        assert drill.ended(run_id) == "success"
        found.append(share_of_airflow(drill.api, drill.store, run_id))
    drill.take_away(host)
    return found


def on_sqlite() -> list[dict[str, float]]:
    """The same on SQLite, everything in one place: `make ui`."""
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder) / "line")
        synthetic.declare(line.data, train=TRAIN, test=TEST)
        airflow = Airflow(migrate(Path(folder) / "airflow"), line)
        found = []
        with airflow.standalone() as url:
            this_week = airflow.begun()
            until(lambda: answers(url))
            api = airflow.api(url)
            api.ask("PATCH", api.run_path(DAG_ID, this_week), state="success")
            for seed in range(1, 4):
                run_id = api.trigger(DAG_ID, {"profile": "quick", "seed": seed})
                until(lambda run_id=run_id: airflow.state(run_id) in {"success", "failed"}, 900)
                found.append(share_of_airflow(api, line.store, run_id) | largest_xcom(airflow, run_id))
    return found


def answers(url: str) -> bool:
    """Whether somebody listens at an address."""
    where = urlsplit(url)
    with socket.socket() as probe:
        return not probe.connect_ex((where.hostname, where.port))


def largest_xcom(airflow: Airflow, run_id: str) -> dict[str, float]:
    """Bytes of what tasks of a run handed on."""
    asked = f"select max(length(value)), sum(length(value)) from xcom where run_id = '{run_id}'"  # noqa: S608 - our own
    ((largest, all_of_them),) = airflow.query(asked)
    return {"largest_xcom_bytes": largest, "xcom_bytes": all_of_them}


def candidates(drill: Drill, workers: int) -> dict[str, Any]:
    """Eight candidates on so many workers of one thread each: how long from the first to the last."""
    drill.clear()
    hosts = [drill.worker(ONE_THREAD) for _ in range(workers)]
    run_id = drill.begin(candidates=CANDIDATES)
    assert drill.ended(run_id, 1800) == "success"
    tasks = [task for task in drill.api.tasks(DAG_ID, run_id) if task["task_id"].endswith(".train")]
    assert len(tasks) == CANDIDATES
    records = read_records(drill.store, run_id)
    inside = [record["seconds"] for name, record in records.items() if name.startswith("train-")]
    whole = took(min(task["start_date"] for task in tasks), max(task["end_date"] for task in tasks))
    for host in hosts:
        drill.take_away(host)
    return {
        "workers": workers,
        "seconds": whole,
        "inside": statistics.mean(inside),
        "around": statistics.mean(took(task["start_date"], task["end_date"]) for task in tasks)
        - statistics.mean(inside),
        "hosts": len({task["hostname"] for task in tasks}),
    }


@contextmanager
def watched(hosts: list[Host]) -> Iterator[dict[str, list[int]]]:
    """What each host's tasks had of memory, MiB, twice a second while this is open."""
    found: dict[str, list[int]] = {host.name: [] for host in hosts}
    ended = threading.Event()

    def used(process: psutil.Process) -> int:
        try:
            return int(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def look() -> None:
        while not ended.wait(0.5):
            for host in hosts:
                if amount := sum(used(process) for process in host.tasks()):
                    found[host.name].append(amount >> 20)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def predicted(drill: Drill) -> dict[str, Any]:
    """A million images in shards over two workers, one of which is killed on the way."""
    drill.clear()
    hosts = [drill.worker(), drill.worker()]
    assert drill.ended(drill.begin()) == "success"  # a champion to ask
    for number in range(PREDICTED // A_FILE):
        drill.store.put(f"inbox/{number:05d}.npz", synthetic.npz(images=synthetic.images(A_FILE, number)[0]))
    drill.api.unpause("fmnist_predict")
    until(lambda: not drill.api.running("fmnist_predict"))
    run_id = drill.api.trigger("fmnist_predict", {"prefix": "inbox/", "files": A_SHARD})

    def shards() -> list[Stat]:
        return list(drill.store.list(f"predictions/{run_id}/shard-"))

    with watched(hosts) as memory:
        until(lambda: len(shards()) >= 5, 900)
        hosts[1].kill()
        until(lambda: drill.api.state("fmnist_predict", run_id) in {"success", "failed"}, 3600)
    run = drill.api.run("fmnist_predict", run_id)
    assert run["state"] == "success", run
    rows = Counter(row.split(",", 1)[0] for stat in shards() for row in read_rows(drill.store, stat))
    assert (len(rows), sum(rows.values())) == (PREDICTED, PREDICTED), "an image is lost or doubled"
    seconds = took(run["start_date"], run["end_date"])
    half = {name: len(values) // 2 for name, values in memory.items()}
    for host in hosts:
        drill.take_away(host)
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


def trained() -> dict[str, Any]:
    """One epoch on two million images that came in batches, and the probe of what is no clothing, from MinIO."""
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
        process = subprocess.run(
            [sys.executable, "-c", _TRAIN, dataset],
            env=os.environ | {"FMNIST_STORE": server.uri("larger")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        server.stop()
        shutil.rmtree(folder)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/cluster.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    found: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}

    def keep(name: str, result: Any) -> None:
        found[name] = {"machine": machine_facts(), "result": result}
        print(name, json.dumps(result, indent=1), flush=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")

    if "trained" in asked.parts:
        keep("trained", trained())
    if "airflow" in asked.parts:
        keep("sqlite", on_sqlite())
    with running(TRAIN, TEST) as drill:
        if "airflow" in asked.parts:
            keep("celery", on_celery(drill))
        if "candidates" in asked.parts:
            keep("candidates", [candidates(drill, workers) for workers in WORKERS])
        if "predicted" in asked.parts:
            keep("predicted", predicted(drill))


if __name__ == "__main__":
    main()
