"""Run the steps of `fmnist_retrain` as tasks, and link tasks to the Releases page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import Asset, BaseOperatorLink, get_current_context, task
from fmnist_defaults import get_actor

from fmnist_tasks.alerts import find_airflow_address
from fmnist_tasks.settings import Parameters, find_dataset, find_page, name_champion_asset

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
    return Run(context["run_id"], created, parameters, get_actor(), tuple(ignored), get_dataset(context))


def get_dataset(context: Mapping[str, Any]) -> str:
    """The dataset of the DAG of a task."""
    return find_dataset(context["dag"].dag_id) or ""


def find_approval() -> dict[str, Any] | None:
    """The response to the approval request; None if there was no request."""
    response: dict[str, Any] | None = get_current_context()["ti"].xcom_pull(task_ids="tuned_model.approval")
    return response


def find_champion_asset() -> Asset:
    """The asset of the champion of this task's dataset."""
    return Asset(name_champion_asset(get_dataset(get_current_context())))


def save_report(context: Mapping[str, Any]) -> None:
    """Failure callback of `approval`, which is not a step: save the report of the run, which ends here."""
    from fmnist_tasks import run_report
    from fmnist_tasks.registry.stores import open_default_store

    run_report.save_report(open_default_store(get_dataset(context)), context["run_id"])


def read_outcome(dataset: str, run_id: str, step: str) -> str:
    """The outcome of a step, as one sentence."""
    from fmnist_tasks.registry.runs import read_record
    from fmnist_tasks.registry.stores import open_default_store

    return read_record(open_default_store(dataset), run_id, step).outcome


def build_report_url(dataset: str, run_id: str = "{{ run_id | urlencode }}") -> str:
    """URL of the report of a run on the Releases page; by default a template for the run of a task."""
    return f"{find_airflow_address()}{find_page(dataset)}runs/{run_id}"


class VerdictLink(BaseOperatorLink):
    """The button "Verdict" of a gate, which opens the gate's section in the report of the run."""

    name = "Verdict"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL on the Releases page."""
        report = build_report_url(find_dataset(ti_key.dag_id) or "", quote(ti_key.run_id))
        return f"{report}#{ti_key.task_id.rpartition('.')[2]}"


class ReleaseLink(BaseOperatorLink):
    """The button "Release" of `publish`, which opens the release on the Releases page."""

    name = "Release"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL on the Releases page."""
        page = find_page(find_dataset(ti_key.dag_id) or "")
        return f"{find_airflow_address()}{page}releases/{ti_key.xcom_pull(task_ids=ti_key.task_id)}"
