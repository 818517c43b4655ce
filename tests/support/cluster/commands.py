"""Start a cluster, run the pipeline on it, stop it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fmnist_tasks.settings import DAG_ID
from tests.support.airflow_api import AirflowApi
from tests.support.cluster.cluster import PORTS, Cluster, require_stores
from tests.support.cluster.programs import Location
from tests.support.cluster.supervision import ClusterError, Supervisor
from tests.support.ports import accepts_connections, reserve_port


def start_cluster(folder: Path, workers: int, port: int, changes: Mapping[str, str] | None = None) -> Location:
    """Start all services and print the address of the UI.

    `changes` apply to the environment of Airflow's services. Raises :class:`ClusterError` if the cluster is already
    running, the port is in use, a requirement is missing, or a service does not become healthy.
    """
    cluster, supervisor = Cluster(folder), Supervisor(folder)
    if supervisor.find_daemon():
        raise ClusterError("the cluster is already running; stop it with `make cluster-down`")
    if accepts_connections(port):
        raise ClusterError(f"port {port} is taken; choose another: make cluster PORT=8081")
    require_stores()
    start = time.monotonic()
    location = Location(folder, ports={name: reserve_port() for name in PORTS} | {("api-server", 8080): port})
    programs = cluster.write_programs(location, changes or {})
    for number in range(1, workers + 1):  # on one machine, each needs another port for its logs
        worker_changes = {**(changes or {}), "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(reserve_port())}
        programs.append(cluster.write_worker(location, f"worker-{number}", worker_changes))
    supervisor.start_daemon(programs)
    try:
        supervisor.start_all(programs)
    except BaseException:
        supervisor.shut_down()
        raise
    (folder / "address").write_text(f"http://127.0.0.1:{port}\n")
    print(f"""
  http://127.0.0.1:{port}    user admin, password ADMIN_PASSWORD in {folder / ".env"}

  {workers} workers, ready in {time.monotonic() - start:.0f} seconds; logs in {folder / "logs"}
  Train:  make run-cluster, or in the UI
  Stop:   make cluster-down; data stays
""")
    return location


def stop_cluster(folder: Path) -> None:
    """Stop all services; data stays."""
    print("cluster stopped" if Supervisor(folder).shut_down() else "no cluster is running")


def run_on_cluster(folder: Path, parameters: str) -> None:
    """Run the pipeline on the cluster and print which worker runs which task.

    Exits with 0 if the run succeeded and promoted a champion or nothing had changed, with another code otherwise.
    """
    if not Supervisor(folder).find_daemon():
        raise ClusterError("no cluster is running; start one with `make cluster`")
    api = Cluster(folder).open_api((folder / "address").read_text().strip())
    api.wait_for_dag(DAG_ID)
    run_id = api.trigger_run(DAG_ID, json.loads(parameters))
    api.unpause_dag(DAG_ID)
    print(f"run {run_id} is queued; one run at a time", flush=True)
    printed: set[tuple[str, ...]] = set()
    while (state := api.read_run_state(DAG_ID, run_id)) in {"queued", "running"}:
        for active_run_id in api.list_active_runs(DAG_ID):
            _print_tasks(api, active_run_id, printed)
        time.sleep(1)
    _print_tasks(api, run_id, printed)
    print(f"run {run_id}: {state}")
    code = subprocess.run([folder / "programs" / "api-server", "fmnist", "summary", "--run", run_id]).returncode
    sys.exit(state != "success" or code)


def _print_tasks(api: AirflowApi, run_id: str, printed: set[tuple[str, ...]]) -> None:
    """Print each new state of the run's tasks and the worker, and add it to the printed ones."""
    for task in api.list_tasks(DAG_ID, run_id):
        state = (run_id, *(str(task[name]) for name in ("task_id", "map_index", "state", "try_number")))
        if task["state"] in {"running", "success", "failed", "up_for_retry"} and state not in printed:
            printed.add(state)
            line = f"{run_id[:32]:<32}  {task['task_id']:<28}  {task['state']:<12}  {task['hostname']}"
            print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
