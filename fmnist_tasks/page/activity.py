"""Data of the overview besides releases: the last and the next run, and the newest batches in quarantine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from fmnist_tasks.errors import READ_ERRORS, SettingsError
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.runs import StepRecord
from fmnist_tasks.text import make_printable

MAX_QUARANTINED = 10  # batches to show
_MAX_REASON_BYTES = 64 << 10


@dataclass(frozen=True)
class Schedule:
    """The next and the last run of the pipeline, from Airflow's database."""

    next_run: datetime | None = None  # None if no run is scheduled
    is_paused: bool = False
    last_run_id: str | None = None
    last_run_state: str | None = None  # in Airflow: queued, running, success or failed
    last_run_time: datetime | None = None  # when the run was requested


@dataclass(frozen=True)
class LastRun:
    """The newest run, with its result in one word and one sentence."""

    run_id: str
    time: datetime | None
    result: str
    outcome: str


@dataclass(frozen=True)
class QuarantinedFiles:
    """A batch in quarantine."""

    run_id: str
    name: str
    time: datetime
    reason: str


def read_schedule(dag_id: str) -> Schedule:
    """Read the runs of a DAG in Airflow's database. Only the API server may call this."""
    from airflow.models import DagModel, DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        dag = session.get(DagModel, dag_id)
        query = select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(1)
        run = session.scalars(query).first()
        return Schedule(
            next_run=dag.next_dagrun_create_after if dag else None,
            is_paused=bool(dag and dag.is_paused),
            last_run_id=run.run_id if run else None,
            last_run_state=str(run.state) if run else None,
            last_run_time=run.run_after if run else None,
        )


def read_last_run(store: Store, schedule: Schedule) -> LastRun | None:
    """The newest run and its result, from its records; None before the first run."""
    if schedule.last_run_id is None:
        return None
    try:
        records = [*read_records(store, schedule.last_run_id).values()]
    except (*READ_ERRORS, SettingsError) as error:  # SettingsError: the run ID is not a valid key
        result, outcome = "unknown", str(error)
    else:
        result, outcome = _summarise(records, schedule.last_run_state)
    return LastRun(schedule.last_run_id, schedule.last_run_time, result, outcome)


def _summarise(records: list[StepRecord], state: str | None) -> tuple[str, str]:
    """The result of a run in one word, and a sentence that explains it."""
    if not records:
        return state or "unknown", "No step has begun; open the run in Airflow for the reason."
    last = records[-1]
    if stopped := next((record for record in records if record.status in {"rejected", "failed"}), None):
        return stopped.status, f"{stopped.step}: {stopped.outcome}"
    if last.found_no_change:
        return "unchanged", last.outcome
    if last.step == "promote" and last.status == "done":
        return "promoted", last.outcome
    if state == "running":
        if last.step == "promotion_gate" and (last.result or {}).get("decision") == "hold":
            return "waiting", f"Approval needed: {last.outcome}"
        return "running", f"{last.step} is running." if last.status == "running" else f"{last.step} is done."
    return state or "unknown", f"{last.step}: {last.outcome}"


def list_quarantine(store: Store) -> list[QuarantinedFiles]:
    """The newest batches in quarantine, newest first."""
    reasons = re.compile(r"quarantine/[^/]+/.+\.reason\.txt")
    stats = [stat for stat in store.list("quarantine/") if reasons.fullmatch(stat.key)]
    newest = sorted(stats, key=lambda stat: stat.modified, reverse=True)[:MAX_QUARANTINED]
    rows = []
    for stat in newest:
        _, run_id, name = stat.key.split("/", 2)
        try:
            text = store.get(stat.key, _MAX_REASON_BYTES).decode(errors="replace")
            reason = "; ".join(text.partition("\n\n")[0].splitlines())  # the rest lists the files
        except READ_ERRORS as error:
            reason = str(error)
        rows.append(
            QuarantinedFiles(
                run_id, make_printable(name.removesuffix(".reason.txt")), stat.modified, make_printable(reason)
            )
        )
    return rows
