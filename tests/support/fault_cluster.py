"""A cluster for fault injection: stores and Airflow on a hub, each worker on a separate host."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmnist_tasks.registry import champion
from fmnist_tasks.registry.releases import list_versions, read_manifest
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.schemas.releases import Manifest
from fmnist_tasks.settings import DAG_ID
from tests.support import synthetic
from tests.support.airflow_api import AirflowApi
from tests.support.airflow_home import UNSCHEDULED, wait_until
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.programs import Location, Program
from tests.support.cluster.supervision import Supervisor
from tests.support.hosts import HUB_ADDRESS, Host, create_hub
from tests.support.outbox import read_alerts

FINAL_STATES = {"success", "failed"}
HOST_ENVIRONMENT = {
    "HOME": "/tmp/home",  # noqa: S108 - each host has its own /tmp
    "AIRFLOW_HOME": "/tmp/airflow",  # noqa: S108
    "FMNIST_HOME": "/tmp/fmnist",  # noqa: S108
    "FMNIST_DATASET": "/tmp/data/dataset.toml",  # noqa: S108
    "FMNIST_DATA_DIR": "/tmp/data",  # noqa: S108
    "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "default,even,odd",  # the queues from which a worker takes tasks
}
SHORT_TIMEOUTS = {  # these take minutes in production and would add up to hours in the tests
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "20",
    # No test changes a DAG file. Parsing them again took 5 CPU seconds per run.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "36000",
}


@dataclass
class FaultCluster:
    """A cluster with its workers; API and store have administrator rights."""

    folder: Path
    local_cluster: Cluster
    supervisor: Supervisor
    api: AirflowApi
    store: S3Store
    hub: str
    programs: list[Program]
    workers: list[Host] = field(default_factory=list)
    unmodified: list[Host] = field(default_factory=list)  # workers without changes, which other tests can reuse
    spare_worker: Host | None = None  # for the next test: starting a worker takes longer than most tasks
    model_digest: str = ""  # digest of the model, which is the same in all runs that `check_only_release` has checked
    ran_on_one_worker: bool = False  # whether one of these runs used a single worker
    worker_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def address(self) -> str:
        """IP address of stores and Airflow."""
        return HUB_ADDRESS

    def start_worker(self, changes: dict[str, str] | None = None, store: str = "", **options: str) -> Host:
        """Start a worker on a new host, or return the spare worker if there is one and no change is requested.

        `changes` apply to the worker's environment, `store` replaces FMNIST_STORE, and the options are fields of
        :class:`Host`.
        """
        is_unmodified = not (changes or store or options)
        spare, self.spare_worker = self.spare_worker, None
        if spare:
            if is_unmodified:
                self.workers.append(spare)
                return spare
            spare.unplug()  # it would take tasks from the modified worker
        number = next(self.worker_numbers)
        host = Host(self.hub, number, self.folder / "hosts" / str(number), **options)
        self.workers.append(host)
        host.plug_in()
        shutil.copytree(self.folder / "template", host.folder, dirs_exist_ok=True)
        environment = HOST_ENVIRONMENT | SHORT_TIMEOUTS | ({"FMNIST_STORE": store} if store else {}) | (changes or {})
        program = self.local_cluster.write_worker(Location(host.folder, HUB_ADDRESS), host.name, environment)
        for script in (program.script, program.health):
            assert script is not None
            script.write_text(script.read_text().replace(str(host.folder), "/tmp"))  # noqa: S108
        self.start_program(host)
        if is_unmodified:
            self.unmodified.append(host)
        return host

    def release_workers(self) -> None:
        """Remove all workers after a test, except one idle, unmodified worker, which becomes the spare one."""
        for host in list(self.workers):
            if self.spare_worker is None and host in self.unmodified and host.is_alive() and not host.list_tasks():
                self.workers.remove(host)
                self.spare_worker = host
            else:
                self.remove_worker(host)

    def remove_worker(self, host: Host) -> None:
        """Remove the host of a worker for good."""
        self.workers.remove(host)
        host.unplug()

    def start_program(self, host: Host) -> None:
        host.start_program(f"/tmp/programs/{host.name}", self.find_log(host))  # noqa: S108

    def find_log(self, host: Host) -> Path:
        return self.folder / "logs" / f"{host.name}.log"

    def trigger_run(self, **conf: Any) -> str:
        return self.api.trigger_run(DAG_ID, {"profile": "quick", **conf})

    def wait_for_end(self, run_id: str, seconds: float = 600) -> str:
        """Wait until the run ends, and return its final state."""
        # Every 2 seconds, since requests to the API server take CPU time from the run.
        wait_until(lambda: self.api.read_run_state(DAG_ID, run_id) in FINAL_STATES, seconds, every=2)
        return self.api.read_run_state(DAG_ID, run_id)

    def read_tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The run's tasks by step, the last part of the task ID."""
        return {task["task_id"].rpartition(".")[2]: task for task in self.api.list_tasks(DAG_ID, run_id)}

    def list_finished_tasks(self, run_id: str) -> list[dict[str, Any]]:
        """The tasks of a run that succeeded on a worker."""
        return [task for task in self.api.list_tasks(DAG_ID, run_id) if task["state"] == "success" and task["hostname"]]

    def count_checkpointed_epochs(self, run_id: str, step: str) -> int:
        """The number of epochs in the latest checkpoint of a step's training, or 0."""
        prefix = f"checkpoints/{run_id}/{'tuned' if step == 'fine_tune' else 'base'}"
        return max((int(stat.key.rpartition("/")[2]) for stat in self.store.list(prefix)), default=0)

    def list_alerts(self, run_id: str) -> list[str]:
        """The events of the alerts about a run, sorted."""
        return sorted(alert["event"] for alert in read_alerts(self.store) if alert["run_id"] == run_id)

    def read_task_log(self, run_id: str, step: str, attempt: int) -> str:
        """The log of one attempt of a task. Airflow's API reads it from the object store."""
        task = self.read_tasks(run_id)[step]
        path = f"{self.api.build_run_path(DAG_ID, run_id)}/taskInstances/{task['task_id']}/logs/{attempt}"
        return json.dumps(self.api.send_request("GET", f"{path}?map_index={task['map_index']}&full_content=true"))

    def check_only_release(self, run_id: str) -> Manifest:
        """Check that the run created the only release and promoted it once, and return its manifest.

        Also checks that its model is identical to that of all earlier runs of this cluster that were checked.
        """
        releases, log = self.read_releases_and_log()
        assert len(releases) == 1
        assert log == releases
        manifest = read_manifest(self.store, releases[0])
        assert manifest.run_id == run_id
        model = manifest.files["model.h5"].sha256
        self.model_digest = self.model_digest or model
        assert model == self.model_digest
        self.ran_on_one_worker = (
            self.ran_on_one_worker or len({task["hostname"] for task in self.list_finished_tasks(run_id)}) == 1
        )
        return manifest

    def wait_for_start(self, run_id: str, step: str = "train", attempt: int = 1) -> str:
        """Wait until an attempt of a step has started, and return the name of its worker."""

        def find_worker() -> str | None:
            task = self.read_tasks(run_id).get(step)
            has_started = task and task["try_number"] >= attempt and task["state"] in {"running", "success"}
            return str(task["hostname"]) if task and has_started else None

        return wait_until(find_worker, every=1)

    def wait_until_healthy(self, name: str) -> None:
        """Wait until a service is healthy."""
        (program,) = (program for program in self.programs if program.name == name)
        self.supervisor.wait_until_healthy(program)

    def empty_store(self) -> None:
        """Delete all objects in the store."""
        for stat in list(self.store.list("")):
            self.store.delete(stat.key)

    def read_releases_and_log(self) -> tuple[list[str], list[str]]:
        """The versions of all releases, and of all entries of the champion log in order."""
        return list_versions(self.store), [entry.version for entry in champion.list_entries(self.store)]


@contextmanager
def run_fault_cluster(train: int, test: int) -> Iterator[FaultCluster]:
    """Run a cluster without workers, with this number of synthetic training and test images."""
    # Not in pytest's temporary folder, which Postgres, running as another user, cannot traverse.
    folder = Path(tempfile.mkdtemp(prefix="fmnist-cluster-"))
    template = folder / "template"  # the files of a new worker
    synthetic.write_dataset(template / "data", train=train, test=test)
    dataset = {"FMNIST_DATASET": str(template / "data" / "dataset.toml"), "FMNIST_DATA_DIR": str(template / "data")}
    local_cluster, supervisor, name = Cluster(folder), Supervisor(folder), f"fmnist{os.getpid()}"
    with create_hub(name) as address:
        programs = local_cluster.write_programs(Location(folder, address), SHORT_TIMEOUTS | UNSCHEDULED | dataset)
        policy = Path(__file__).with_name("airflow_local_settings.py")
        for home in (template / "airflow", *(folder / "airflow" / program.name for program in programs)):
            (home / "config").mkdir(parents=True)
            shutil.copy(policy, home / "config")
        supervisor.start_daemon(programs)
        try:
            supervisor.start_all(programs)
            api, location = local_cluster.open_api(f"http://{address}:8080"), Location(folder, address)
            cluster = FaultCluster(
                folder, local_cluster, supervisor, api, local_cluster.open_store(location), name, programs
            )
            api.wait_for_dag(DAG_ID)
            api.unpause_dag(DAG_ID)
            yield cluster
        finally:
            supervisor.shut_down()
    shutil.rmtree(folder)
