"""### Freshness check

Every hour, from the first minute on (this DAG is not paused when it is created):

* delivers alerts that could not be delivered before, and gives up what has waited for 7 days;
* sends the alerts that a killed task could not;
* sends an alert if no run of `fmnist_retrain` has succeeded for `FMNIST_OVERDUE_DAYS` since the last success, or since
  this DAG first ran. It is repeated weekly until a run succeeds. That covers what no run can report of itself: a paused
  schedule, runs that never begin;
* fetches `FMNIST_HEARTBEAT_URL`, if there is one, once all of this has succeeded, so that a monitor outside notices
  when this scheduler stands still.

The [runbook](/fmnist/runbook) says what to do about each alert.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import CronTriggerTimetable, dag
from fmnist_defaults import TASKS, step

from fmnist_tasks.settings import WATCH_ID


@step
def last_success() -> str:
    """Deliver what waits, and see when a run last succeeded; an alert if that is too long ago."""
    from fmnist_tasks.alerts.watch import watch

    return watch()


@dag(
    dag_id=WATCH_ID,
    doc_md=__doc__,
    schedule=CronTriggerTimetable("0 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    tags=["fmnist"],
    default_args=TASKS,
)
def fmnist_watch() -> None:
    """One task."""
    last_success()


fmnist_watch()
