"""Run the steps of `fmnist_retrain` as tasks, and link tasks to the Releases page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, get_current_context, task
from fmnist_defaults import get_actor

from fmnist_tasks.alerts import find_airflow_address
from fmnist_tasks.settings import Parameters

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from fmnist_tasks.steps import Run


def make_task(step: str, doc: str) -> XComArg:
    """Add a task that runs a step and returns nothing."""

    @task(task_id=step, doc_md=doc)
    def run() -> None:
        run_step(step)

    return run()


def run_step(step: str, **arguments: Any) -> Any:
    """Run a step for the run of this task; return its result."""
    from fmnist_tasks import steps

    return steps.run_step(step, get_run(), **arguments)


def get_run() -> Run:
    """The run of this task, as the steps require it."""
    from fmnist_tasks.steps import Run

    context = get_current_context()
    created = context["dag_run"].run_after.astimezone(UTC).isoformat(timespec="seconds")
    values = dict(context["params"])
    ignored = sorted(values.keys() - Parameters().to_json().keys())  # Airflow accepts any key in a run's conf
    parameters = Parameters.from_mapping({name: value for name, value in values.items() if name not in ignored})
    if sys.argv[1:3] == ["dags", "test"]:  # it has neither a UI to show the request nor a triggerer to end the wait
        parameters = replace(parameters, approval=False)
    return Run(context["run_id"], created, parameters, get_actor(), tuple(ignored))


def find_approval() -> dict[str, Any] | None:
    """The response to the approval request; None if there was no request."""
    response: dict[str, Any] | None = get_current_context()["ti"].xcom_pull(task_ids="tuned_model.approval")
    return response


def save_report(context: Mapping[str, Any]) -> None:
    """Failure callback of `approval`, which is not a step: save the report of the run, which ends here."""
    from fmnist_tasks import run_report
    from fmnist_tasks.registry.stores import open_default_store

    run_report.save_report(open_default_store(), context["run_id"])


def read_outcome(run_id: str, step: str) -> str:
    """The outcome of a step, as one sentence."""
    from fmnist_tasks.registry.runs import read_record
    from fmnist_tasks.registry.stores import open_default_store

    return read_record(open_default_store(), run_id, step).outcome


def build_report_url(run_id: str = "{{ run_id | urlencode }}") -> str:
    """URL of the report of a run on the Releases page; by default a template for the run of a task."""
    return f"{find_airflow_address()}/fmnist/runs/{run_id}"


class VerdictLink(BaseOperatorLink):
    """The button "Verdict" of a gate, which opens the gate's section in the report of the run."""

    name = "Verdict"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL on the Releases page."""
        return f"{build_report_url(quote(ti_key.run_id))}#{ti_key.task_id.rpartition('.')[2]}"


class ReleaseLink(BaseOperatorLink):
    """The button "Release" of `publish`, which opens the release on the Releases page."""

    name = "Release"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL on the Releases page."""
        return f"{find_airflow_address()}/fmnist/releases/{ti_key.xcom_pull(task_ids=ti_key.task_id)}"
