"""### Hourly checks: waiting alerts, unreported failures, overdue runs

Every hour, from the first minute on (this DAG is not paused when it is created), `last_success`

* delivers alerts that could not be delivered before, and gives up what has waited for 7 days;
* sends the alerts that a killed task could not;
* sends an alert if no run of `fmnist_retrain` has succeeded for `FMNIST_OVERDUE_DAYS` since the last success, or since
  this DAG first ran. It is repeated weekly until a run succeeds. That covers what no run can report of itself: a paused
  schedule, runs that never begin;
* fetches `FMNIST_HEARTBEAT_URL`, if there is one, once all of this has succeeded, so that a monitor outside notices
  when this scheduler stands still;

and `announce_champion` emits the champion's asset event for a change that was not announced: one made from a shell
without Airflow's database, or by a task that was killed.

The [runbook](/fmnist/runbook) says what to do about each alert.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import CronTriggerTimetable, dag, get_current_context
from airflow.sdk.exceptions import AirflowSkipException
from fmnist_defaults import CHAMPION, TASKS, step

from fmnist_tasks.settings import WATCH_ID, read_store_uri


@step
def last_success() -> str:
    """Deliver what waits, and see when a run last succeeded; an alert if that is too long ago."""
    from fmnist_tasks.alerts.watch import watch

    return watch()


@step(inlets=[CHAMPION], outlets=[CHAMPION])
def announce_champion() -> dict[str, Any]:
    """Emit the champion's asset event if the last one is of another release; otherwise it is skipped."""
    from fmnist_tasks.announcement import find_unannounced
    from fmnist_tasks.registry.store import open_store

    context = get_current_context()
    last = list(context["inlet_events"][CHAMPION].ascending(False).limit(1))
    announced = (last[0].extra or {}).get("version") if last else None
    entry = find_unannounced(open_store(read_store_uri()), str(announced))
    if entry is None:
        raise AirflowSkipException("the champion was announced")
    facts: dict[str, Any] = {"version": entry.version, "sequence": entry.sequence}
    context["outlet_events"][CHAMPION].extra.update(facts)
    return facts


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
    """Two tasks."""
    last_success()
    announce_champion()


fmnist_watch()
