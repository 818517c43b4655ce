"""Start a cluster, run the main DAG on it, stop it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.airflow_api import AirflowApi
from tests.support.cluster.cluster import DAG_ID, PORTS, Cluster, require_stores
from tests.support.cluster.programs import Place
from tests.support.cluster.supervision import ClusterError, Supervisor
from tests.support.ports import free_port


def start_cluster(folder: Path, workers: int, port: int, changes: Mapping[str, str] | None = None) -> Place:
    """Start everything and print where it is. Changes are of the environment of Airflow's services."""
    cluster, supervisor = Cluster(folder), Supervisor(folder)
    if supervisor.process():
        raise ClusterError("the cluster is already running; stop it with `make cluster-down`")
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", port)):
            raise ClusterError(f"port {port} is taken; choose another: make cluster PORT=8081")
    require_stores()
    began = time.monotonic()
    place = Place(folder, ports={name: free_port() for name in PORTS} | {("api-server", 8080): port})
    programs = cluster.programs(place, changes or {})
    for number in range(1, workers + 1):  # on one machine each needs a port of its own
        own = {**(changes or {}), "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port())}
        programs.append(cluster.worker(place, f"worker-{number}", own))
    supervisor.begin(programs)
    try:
        supervisor.start_all(programs)
    except BaseException:
        supervisor.end()
        raise
    (folder / "address").write_text(f"http://127.0.0.1:{port}\n")
    print(f"""
  http://127.0.0.1:{port}    user admin, password ADMIN_PASSWORD in {folder / ".env"}

  {workers} workers, ready in {time.monotonic() - began:.0f} seconds; logs in {folder / "logs"}
  Train:  make run-cluster, or in the UI
  Stop:   make cluster-down; data stays
""")
    return place


def stop_cluster(folder: Path) -> None:
    """Stop everything; what was stored stays."""
    print("cluster stopped" if Supervisor(folder).end() else "no cluster is running")


def run_on_cluster(folder: Path, parameters: str) -> None:
    """Run the main DAG on the cluster, print which worker runs which task, and exit with the run's result."""
    if not Supervisor(folder).process():
        raise ClusterError("no cluster is running; start one with `make cluster`")
    api = Cluster(folder).api((folder / "address").read_text().strip())
    run_id = api.trigger(DAG_ID, json.loads(parameters))
    api.unpause(DAG_ID)
    print(f"run {run_id} is queued; one run at a time, on a new cluster this week's scheduled run first", flush=True)
    told: set[tuple[str, ...]] = set()
    while (state := api.state(DAG_ID, run_id)) in {"queued", "running"}:
        for running in api.running(DAG_ID):
            _print_tasks(api, running, told)
        time.sleep(1)
    _print_tasks(api, run_id, told)
    print(f"run {run_id}: {state}")
    ended = subprocess.run([folder / "programs" / "api-server", "fmnist", "summary", "--run", run_id]).returncode
    sys.exit(state != "success" or ended)


def _print_tasks(api: AirflowApi, run_id: str, told: set[tuple[str, ...]]) -> None:
    """Print what has become of each task of a run, once, and on which worker."""
    for task in api.tasks(DAG_ID, run_id):
        fact = (run_id, *(str(task[name]) for name in ("task_id", "map_index", "state", "try_number")))
        if task["state"] in {"running", "success", "failed", "up_for_retry"} and fact not in told:
            told.add(fact)
            where = f"{run_id[:32]:<32}  {task['task_id']:<28}  {task['state']:<12}  {task['hostname']}"
            print(f"{time.strftime('%H:%M:%S')}  {where}", flush=True)
