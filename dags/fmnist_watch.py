"""### Is the line alive?

Once a day: if no run of `fmnist_retrain` has ended well for longer than `FMNIST_OVERDUE_DAYS`, a person is told, once.
It also notices what no run can report of itself: a schedule that was paused, runs that are never begun.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import CronTriggerTimetable, dag
from fmnist_defaults import TASKS, step


@step
def last_success() -> str:
    """When a run last ended well; an alert if that was too long ago."""
    from fmnist_tasks.alerts import overdue

    return overdue(datetime.now(UTC))


@dag(
    dag_id="fmnist_watch",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["fmnist"],
    default_args=TASKS,
)
def fmnist_watch() -> None:
    """One task."""
    last_success()


fmnist_watch()
