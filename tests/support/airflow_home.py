"""Airflow processes in a separate home, for tests that need a scheduler, the UI or the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fmnist_tasks.settings import DAG_ID, PROJECT
from tests.support.airflow_api import AirflowApi
from tests.support.finished_run import provide_migrated_database
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port

QUICK = {"profile": "quick"}
FAST_POLLING = {  # intervals and limits, in seconds
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # a worker may stay idle that long after a task
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # for slow or busy machines
    # No test changes a DAG file. Parsing them again takes CPU seconds in every run.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "36000",
}

# Neither the schedule nor an asset event starts a run, which would interfere with the runs of a test.
UNSCHEDULED = {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}

T = TypeVar("T")


def copy_migrated_home(home: Path) -> Path:
    """Create an Airflow home with an empty database."""
    shutil.copytree(provide_migrated_database(), home)
    return home


@dataclass(frozen=True)
class AirflowInstallation:
    """An Airflow home, and the pipeline on which its DAG runs. A call runs a command."""

    home: Path
    pipeline: Pipeline
    overrides: dict[str, str] = field(default_factory=dict)  # of the pipeline's environment

    @property
    def environment(self) -> dict[str, str]:
        # Coverage slows Airflow's services by half, and other tests measure the code that they run.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        return (
            inherited
            | self.pipeline.environment
            | self.overrides
            | {
                "AIRFLOW_HOME": str(self.home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
            }
        )

    def start_program(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run a command, and return its exit code and its output, standard error included."""
        process = self.start_program(*arguments)
        output, _ = process.communicate(timeout=1200)
        return process.returncode, output

    def run_dag(self, **conf: object) -> tuple[int, str]:
        return self(str(PROJECT / "include" / "run"), json.dumps(QUICK | conf))

    def query_database(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.home / "airflow.db", timeout=60) as database:
            return database.execute(sql).fetchall()

    def read_run_state(self, run_id: str) -> str | None:
        """The state of a run, or None if it does not exist."""
        rows = self.query_database(f"select state from dag_run where run_id = '{run_id}'")  # noqa: S608
        return rows[0][0] if rows else None

    def read_task_states(self, run_id: str) -> dict[str, str]:
        """The state of each task of a run, by the last part of the task ID."""
        rows = self.query_database(f"select task_id, state from task_instance where run_id = '{run_id}'")  # noqa: S608
        return {task_id.rpartition(".")[2]: state for task_id, state in rows}

    def unpause_dag(self, dag_id: str) -> None:
        """Unpause a DAG once the dag-processor has read it.

        Before that, `airflow dags unpause` does nothing and still succeeds.
        """
        wait_until(lambda: self.query_database(f"select dag_id from serialized_dag where dag_id = '{dag_id}'"))  # noqa: S608
        code, output = self("airflow", "dags", "unpause", dag_id)
        assert code == 0, output
        assert self.query_database(f"select is_paused from dag where dag_id = '{dag_id}'") == [(0,)], output  # noqa: S608

    def is_waiting_for_approval(self, run_id: str, dag_id: str = DAG_ID, task_id: str = "tuned_model.approval") -> bool:
        """Whether a run waits for an approval, and the scheduler has noticed it.

        A response before that is lost: the scheduler believes that the resumed task has died, and starts it again.
        """
        message = f"TaskInstance Finished: dag_id={dag_id}, task_id={task_id}, run_id={run_id},"
        is_waiting = self.read_task_states(run_id).get("approval") == "awaiting_input"
        return is_waiting and message in (self.home / "standalone.log").read_text()

    def decide_approval(self, url: str, run_id: str, option: str) -> None:
        """Approve or reject the candidate of a run, with a reason, through the API at this address."""
        task = f"{AirflowApi.build_run_path(DAG_ID, run_id)}/taskInstances/tuned_model.approval/-1/hitlDetails"
        self.open_api(url).send_request(
            "PATCH", task, chosen_options=[option], params_input={"approval_reason": "tests"}
        )

    def read_password(self, user: str) -> str:
        """The password that the API server generated for a user."""
        passwords = json.loads((self.home / "simple_auth_manager_passwords.json.generated").read_text())
        return str(passwords[user])

    def open_api(self, url: str) -> AirflowApi:
        """The API at this address, as the user admin."""
        return AirflowApi(url, "admin", self.read_password("admin"))

    @contextmanager
    def run_standalone(self) -> Iterator[str]:
        """Run scheduler, dag-processor, triggerer and API server; yields the address of the API server."""
        port = reserve_port()
        changes = {
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
        }
        with (self.home / "standalone.log").open("wb") as log:
            process = subprocess.Popen(
                ["airflow", "standalone"],
                env=self._service_environment | changes,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: process.poll() is not None or accepts_connections(port))
            assert process.poll() is None, "Airflow ended before its API server was ready"
            yield f"http://127.0.0.1:{port}"
        except Exception as error:
            error.add_note("\n".join((self.home / "standalone.log").read_text().splitlines()[-200:]))
            raise
        finally:
            process.terminate()
            process.wait()
            with suppress(ProcessLookupError):  # kill what remains of its process group
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def run_ui(self) -> Iterator[str]:
        """Run the same services by `make ui`; yields what it prints when it is ready.

        At the end, stops it by Ctrl-C and checks that none of its processes remains.
        """
        process = subprocess.Popen(
            [PROJECT / "include" / "ui"],
            env=self._service_environment | {"PORT": str(reserve_port())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background processes ignore SIGINT
        )
        assert process.stdout is not None
        with process.stdout as stdout:
            output = ""
            while "Ctrl-C stops" not in output:
                line = stdout.readline()
                assert line, output
                output += line
            try:
                yield output
            finally:
                children = psutil.Process(process.pid).children(recursive=True)
                os.killpg(process.pid, signal.SIGINT)
                code = process.wait()
        _, survivors = psutil.wait_procs(children, timeout=10)
        assert (code, survivors) == (0, [])

    @property
    def _service_environment(self) -> dict[str, str]:
        names = ("AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT")
        config = self.home / "config"
        config.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).with_name("preloading_scheduler.py"), config / "airflow_local_settings.py")
        return UNSCHEDULED | self.environment | FAST_POLLING | {name: str(reserve_port()) for name in names}


def wait_until(condition: Callable[[], T | None], seconds: float = 900, every: float = 0.2) -> T:
    """Evaluate a condition every `every` seconds until it is true, and return its value; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"condition not met after {seconds} seconds"
        time.sleep(every)
    return value
