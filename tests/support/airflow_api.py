"""A client for Airflow's REST API."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen


class AirflowApi:
    """The API at an address, signed in as one user."""

    def __init__(self, address: str, user: str, password: str) -> None:
        self.address, self.token = address, ""
        self.token = self.send_request("POST", "/auth/token", username=user, password=password)["access_token"]

    def send_request(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        """Send a request and return the JSON of the response; raises `urllib.error.HTTPError` for an error status."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        body = json.dumps(content).encode() if content else None
        request = Request(f"{self.address}{path}", body, headers, method=method)  # noqa: S310 - http only, see callers
        with urlopen(request, timeout=60) as response:  # noqa: S310
            return dict(json.load(response))

    def wait_for_dag(self, dag_id: str, seconds: float = 300) -> None:
        """Wait until the dag-processor has read a DAG; raises `urllib.error.HTTPError` if that takes too long."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.send_request("GET", f"/api/v2/dags/{dag_id}")
            except HTTPError as error:
                if error.code != HTTPStatus.NOT_FOUND or time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return

    def unpause_dag(self, dag_id: str) -> None:
        """Unpause a DAG: its queued and scheduled runs start."""
        self.send_request("PATCH", f"/api/v2/dags/{dag_id}?update_mask=is_paused", is_paused=False)

    def trigger_run(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Trigger a run and return its ID, which Airflow generates by default."""
        run = self.send_request(
            "POST", f"/api/v2/dags/{dag_id}/dagRuns", logical_date=None, conf=conf, dag_run_id=run_id
        )
        return str(run["dag_run_id"])

    def read_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The fields of a run, such as `state`, `start_date` and `end_date`."""
        return self.send_request("GET", self.build_run_path(dag_id, run_id))

    def read_run_state(self, dag_id: str, run_id: str) -> str:
        """The state of a run."""
        return str(self.read_run(dag_id, run_id)["state"])

    def list_active_runs(self, dag_id: str) -> list[str]:
        """The IDs of the running runs of a DAG."""
        runs = self.send_request("GET", f"/api/v2/dags/{dag_id}/dagRuns?state=running")["dag_runs"]
        return [str(run["dag_run_id"]) for run in runs]

    def list_tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The tasks of a run with their fields, such as `state`, `try_number` and `hostname`, the worker."""
        return list(
            self.send_request("GET", f"{self.build_run_path(dag_id, run_id)}/taskInstances?limit=100")["task_instances"]
        )

    @staticmethod
    def build_run_path(dag_id: str, run_id: str) -> str:
        """The path of a run in the API."""
        return f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
