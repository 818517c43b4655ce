"""A whole cluster for fault injection: stores and Airflow on a hub, workers on hosts of their own."""

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
from fmnist_tasks.registry.releases import read_manifest, versions
from fmnist_tasks.registry.s3 import S3Store
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
HOST_ENVIRONMENT = {  # where a host has what is its own
    "HOME": "/tmp/home",  # noqa: S108 - a host's own
    "AIRFLOW_HOME": "/tmp/airflow",  # noqa: S108
    "FMNIST_HOME": "/tmp/fmnist",  # noqa: S108
    "FMNIST_DATASET": "/tmp/data/made.toml",  # noqa: S108
    "FMNIST_DATA_DIR": "/tmp/data",  # noqa: S108
    "AIRFLOW__OPERATORS__DEFAULT_QUEUE": "default,even,odd",  # what a worker listens to
}
SHORT_TIMEOUTS = {  # what takes minutes in service and would take hours in tests
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "20",
    # No test changes a DAG file: to read them took 5 seconds of a core a run.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "36000",
}


@dataclass
class FaultCluster:
    """The cluster, its store as an administrator sees it, and its workers."""

    folder: Path
    local_cluster: Cluster
    supervisor: Supervisor
    api: AirflowApi
    store: S3Store
    hub: str
    programs: list[Program]
    workers: list[Host] = field(default_factory=list)
    unmodified: list[Host] = field(default_factory=list)  # those that were asked for without anything of their own
    spare_worker: Host | None = None  # left by the test before: to start one takes longer than most tasks
    model_digest: str = ""  # digest of the model of every run that `check_only_release` was asked of
    ran_on_one_worker: bool = False  # whether one of these had one worker only
    worker_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def address(self) -> str:
        """Where stores and Airflow are."""
        return HUB_ADDRESS

    def start_worker(self, changes: dict[str, str] | None = None, store: str = "", **traits: str) -> Host:
        """A worker on a host of its own: a new one, or the spare one if there is one and it may be like any."""
        is_unmodified = not (changes or store or traits)
        spare, self.spare_worker = self.spare_worker, None
        if spare:
            if is_unmodified:
                self.workers.append(spare)
                return spare
            spare.unplug()  # it would take tasks that are meant for the other
        number = next(self.worker_numbers)
        host = Host(self.hub, number, self.folder / "hosts" / str(number), **traits)
        self.workers.append(host)
        host.plug_in()
        shutil.copytree(self.folder / "given", host.folder, dirs_exist_ok=True)
        named = {"FMNIST_STORE": store} if store else {}
        program = self.local_cluster.write_worker(
            Location(host.folder, HUB_ADDRESS), host.name, HOST_ENVIRONMENT | SHORT_TIMEOUTS | named | (changes or {})
        )
        for script in (program.script, program.health):
            assert script is not None
            script.write_text(script.read_text().replace(str(host.folder), "/tmp"))  # noqa: S108
        self.start_program(host)
        if is_unmodified:
            self.unmodified.append(host)
        return host

    def release_workers(self) -> None:
        """Between two tests: every worker goes, but one that lives and has nothing to do stays as the spare one."""
        for host in list(self.workers):
            if self.spare_worker is None and host in self.unmodified and host.is_alive() and not host.list_tasks():
                self.workers.remove(host)
                self.spare_worker = host
            else:
                self.remove_worker(host)

    def remove_worker(self, host: Host) -> None:
        """A worker's host is gone for good."""
        self.workers.remove(host)
        host.unplug()

    def start_program(self, host: Host) -> None:
        host.start_program(f"/tmp/programs/{host.name}", self.find_log(host))  # noqa: S108

    def find_log(self, host: Host) -> Path:
        return self.folder / "logs" / f"{host.name}.log"

    def trigger_run(self, **conf: Any) -> str:
        return self.api.trigger_run(DAG_ID, {"profile": "quick", **conf})

    def wait_for_end(self, run_id: str, seconds: float = 600) -> str:
        """How the run ended."""
        wait_until(
            lambda: self.api.read_run_state(DAG_ID, run_id) in FINAL_STATES, seconds, every=2
        )  # an answer takes a core's time too
        return self.api.read_run_state(DAG_ID, run_id)

    def read_tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The run's tasks by the last part of their names."""
        return {task["task_id"].rpartition(".")[2]: task for task in self.api.list_tasks(DAG_ID, run_id)}

    def list_finished_tasks(self, run_id: str) -> list[dict[str, Any]]:
        """The tasks of a run that a worker has done."""
        return [task for task in self.api.list_tasks(DAG_ID, run_id) if task["state"] == "success" and task["hostname"]]

    def count_checkpointed_epochs(self, run_id: str, step: str) -> int:
        """The epochs of a step's training that the store has the latest checkpoint of."""
        prefix = f"checkpoints/{run_id}/{'tuned' if step == 'fine_tune' else 'base'}"
        return max((int(stat.key.rpartition("/")[2]) for stat in self.store.list(prefix)), default=0)

    def list_alerts(self, run_id: str) -> list[str]:
        """The events of a run that alerts were saved for."""
        return sorted(alert["event"] for alert in read_alerts(self.store) if alert["run_id"] == run_id)

    def read_task_log(self, run_id: str, step: str, attempt: int) -> str:
        """What a task wrote, as Airflow shows it: from the object store, whichever worker it was on."""
        task = self.read_tasks(run_id)[step]
        where = f"{self.api.build_run_path(DAG_ID, run_id)}/taskInstances/{task['task_id']}/logs/{attempt}"
        return json.dumps(self.api.send_request("GET", f"{where}?map_index={task['map_index']}&full_content=true"))

    def check_only_release(self, run_id: str) -> dict[str, Any]:
        """The manifest of the only release, which the run made and promoted once.

        Its model is that of all other such runs of this cluster, whatever becomes of them and their workers.
        """
        releases, log = self.read_releases_and_log()
        assert len(releases) == 1
        assert log == releases
        manifest = read_manifest(self.store, releases[0])
        assert manifest["run_id"] == run_id
        model = manifest["files"]["model.h5"]["sha256"]
        self.model_digest = self.model_digest or model
        assert model == self.model_digest
        self.ran_on_one_worker = (
            self.ran_on_one_worker or len({task["hostname"] for task in self.list_finished_tasks(run_id)}) == 1
        )
        return manifest

    def wait_for_start(self, run_id: str, step: str = "train", attempt: int = 1) -> str:
        """Wait until a step has begun, for the first time or again; the worker that it is on."""

        def find_worker() -> str | None:
            task = self.read_tasks(run_id).get(step)
            on_it = task and task["try_number"] >= attempt and task["state"] in {"running", "success"}
            return str(task["hostname"]) if task and on_it else None

        return wait_until(find_worker, every=1)

    def wait_until_healthy(self, name: str) -> None:
        """Wait until a program is healthy."""
        (program,) = (program for program in self.programs if program.name == name)
        self.supervisor.wait_until_healthy(program)

    def empty_store(self) -> None:
        """Empty the store."""
        for stat in list(self.store.list("")):
            self.store.delete(stat.key)

    def read_releases_and_log(self) -> tuple[list[str], list[str]]:
        """Releases, and the champion log's versions in its order."""
        return versions(self.store), [entry.version for entry in champion.history(self.store)]


@contextmanager
def run_fault_cluster(train: int, test: int) -> Iterator[FaultCluster]:
    """Everything but the workers, with so many synthetic images to train and to test on."""
    folder = Path(tempfile.mkdtemp(prefix="fmnist-cluster-"))  # Postgres, another user, cannot pass through pytest's
    synthetic.write_dataset(folder / "given" / "data", train=train, test=test)
    inside = {
        "FMNIST_DATASET": str(folder / "given" / "data" / "made.toml"),
        "FMNIST_DATA_DIR": str(folder / "given" / "data"),
    }
    local_cluster, supervisor, name = Cluster(folder), Supervisor(folder), f"fmnist{os.getpid()}"
    with create_hub(name) as address:
        programs = local_cluster.write_programs(Location(folder, address), SHORT_TIMEOUTS | UNSCHEDULED | inside)
        policy = Path(__file__).with_name("airflow_local_settings.py")
        for home in (folder / "given" / "airflow", *(folder / "airflow" / program.name for program in programs)):
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
