"""A real Airflow with a home of its own, for the tests that run the DAG."""

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
FAST_POLLING = {  # what Airflow waits for between two looks, in seconds
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # which a worker may spend idle after a task
    "AIRFLOW__CORE__PARALLELISM": "2",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",  # on a slow machine that does other things as well
    # No test changes a DAG file; to read them again and again takes seconds of a core in every run.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "36000",
}

# No run begins by a schedule or an asset, which would come between the runs of a test.
UNSCHEDULED = {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}

T = TypeVar("T")


def copy_migrated_home(home: Path) -> Path:
    """A new Airflow home with an empty database."""
    shutil.copytree(provide_migrated_database(), home)
    return home


@dataclass(frozen=True)
class AirflowInstallation:
    """An Airflow home of its own, and the pipeline that its DAG works on."""

    home: Path
    pipeline: Pipeline
    overrides: dict[str, str] = field(default_factory=dict)  # in the pipeline's environment

    @property
    def environment(self) -> dict[str, str]:
        # Coverage costs Airflow's services half as much time again, and what they run is measured elsewhere.
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
        process = self.start_program(*arguments)
        output, _ = process.communicate(timeout=1200)
        return process.returncode, output

    def run_dag(self, **conf: object) -> tuple[int, str]:
        return self(str(PROJECT / "include" / "run"), json.dumps(QUICK | conf))

    def query_database(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.home / "airflow.db", timeout=60) as database:
            return database.execute(sql).fetchall()

    def read_run_state(self, run_id: str) -> str | None:
        """How the run stands."""
        rows = self.query_database(f"select state from dag_run where run_id = '{run_id}'")  # noqa: S608
        return rows[0][0] if rows else None

    def read_task_states(self, run_id: str) -> dict[str, str]:
        """How its tasks stand, by their last part of the name."""
        rows = self.query_database(f"select task_id, state from task_instance where run_id = '{run_id}'")  # noqa: S608
        return {task_id.rpartition(".")[2]: state for task_id, state in rows}

    def unpause_dag(self, dag_id: str) -> None:
        """Let the scheduler begin the runs of one of the DAGs.

        The command finds nothing, and ends well, before the dag-processor has read that DAG.
        """
        wait_until(lambda: self.query_database(f"select dag_id from serialized_dag where dag_id = '{dag_id}'"))  # noqa: S608
        code, output = self("airflow", "dags", "unpause", dag_id)
        assert code == 0, output
        assert self.query_database(f"select is_paused from dag where dag_id = '{dag_id}'") == [(0,)], output  # noqa: S608

    def is_waiting_for_approval(self, run_id: str, dag_id: str = DAG_ID, task_id: str = "tuned_model.approval") -> bool:
        """Whether the run waits for a person, and the scheduler has seen that it does.

        An answer before that is lost: the scheduler takes the task that goes on for one that died, and asks again.
        """
        seen = f"TaskInstance Finished: dag_id={dag_id}, task_id={task_id}, run_id={run_id},"
        waits = self.read_task_states(run_id).get("approval") == "awaiting_input"
        return waits and seen in (self.home / "standalone.log").read_text()

    def decide_approval(self, url: str, run_id: str, option: str) -> None:
        """Decide on the run's candidate, with a reason, as a person does in the UI at that address."""
        task = f"{AirflowApi.build_run_path(DAG_ID, run_id)}/taskInstances/tuned_model.approval/-1/hitlDetails"
        self.open_api(url).send_request(
            "PATCH", task, chosen_options=[option], params_input={"approval_reason": "tests"}
        )

    def read_password(self, user: str) -> str:
        """The password that the API server has generated for a user."""
        passwords = json.loads((self.home / "simple_auth_manager_passwords.json.generated").read_text())
        return str(passwords[user])

    def open_api(self, url: str) -> AirflowApi:
        """The API of what `standalone` started, for its administrator."""
        return AirflowApi(url, "admin", self.read_password("admin"))

    @contextmanager
    def run_standalone(self) -> Iterator[str]:
        """Scheduler, dag-processor, triggerer and API server, until the end; the latter's address."""
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
            assert process.poll() is None, "Airflow ended before its API server was there"
            yield f"http://127.0.0.1:{port}"
        except Exception as error:
            error.add_note("\n".join((self.home / "standalone.log").read_text().splitlines()[-200:]))
            raise
        finally:
            process.terminate()
            process.wait()
            with suppress(ProcessLookupError):  # whatever it left behind
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def run_ui(self) -> Iterator[str]:
        """The same by `make ui`, until Ctrl-C; what it prints once all is ready. Nothing of it may be left."""
        process = subprocess.Popen(
            [PROJECT / "include" / "ui"],
            env=self._service_environment | {"PORT": str(reserve_port())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
        )
        assert process.stdout is not None
        with process.stdout as said:
            told = ""
            while "Ctrl-C stops" not in told:
                line = said.readline()
                assert line, told
                told += line
            try:
                yield told
            finally:
                started = psutil.Process(process.pid).children(recursive=True)
                os.killpg(process.pid, signal.SIGINT)
                ended = process.wait()
        _, left = psutil.wait_procs(started, timeout=10)
        assert (ended, left) == (0, [])

    @property
    def _service_environment(self) -> dict[str, str]:
        names = ("AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT")
        config = self.home / "config"
        config.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).with_name("preloading_scheduler.py"), config / "airflow_local_settings.py")
        return UNSCHEDULED | self.environment | FAST_POLLING | {name: str(reserve_port()) for name in names}


def wait_until(condition: Callable[[], T | None], seconds: float = 900, every: float = 0.2) -> T:
    """Wait for something true, looked for every so many seconds; fails when the time is over."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"nothing after {seconds} seconds"
        time.sleep(every)
    return found
