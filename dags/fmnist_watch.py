"""### Hourly checks: waiting alerts, unreported failures, overdue runs

This DAG is active from the start. Every hour, `check_pipeline`

* delivers waiting alerts; after seven days without success it gives up and reports that;
* sends the alerts that killed tasks could not send;
* sends an alert, repeated weekly, if no run of `fmnist_retrain` has succeeded for `FMNIST_OVERDUE_DAYS` (8), for
  example because the DAG is paused;
* then requests `FMNIST_HEARTBEAT_URL`, if set, so that an external monitor notices when this scheduler stops.

`check_settings` fails if a setting of the DAGs, such as `FMNIST_SCHEDULE`, a declaration or a gates file cannot be
used. Airflow then cannot load `fmnist_retrain`, or its runs fail.

`announce_champions` emits a champion's asset event for a change that nothing else announced, for example because a
task was killed.

If a task is red, it runs again in the next hour; a failure is reported once a day. See the
[runbook](/fmnist/runbook).
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import Asset, CronTriggerTimetable, dag, get_current_context
from airflow.sdk.exceptions import AirflowSkipException
from fmnist_defaults import CHAMPIONS, DAGS, declare_task, emit_champion_event, link_pages, read_schedule

from fmnist_tasks.settings import WATCH_ID, list_datasets, name_champion_asset

DATASETS = ["", *list_datasets()]
ASSETS = {dataset: Asset(name_champion_asset(dataset)) for dataset in DATASETS}


@declare_task
def check_pipeline() -> str:
    """Deliver waiting alerts, and send one if no run has succeeded for too long."""
    from fmnist_tasks.alerts import watch

    return watch.check_pipeline()


@declare_task
def check_settings() -> None:
    """Raise if a setting of the DAGs, a declaration of a dataset, or a gates file cannot be used."""
    from fmnist_tasks.steps.gates import read_valid_policy

    read_schedule()
    for dataset in DATASETS:
        read_valid_policy(dataset, {})


@declare_task(inlets=[*ASSETS.values()], outlets=[CHAMPIONS])
def announce_champions() -> dict[str, str]:
    """Emit the asset event of each champion, unless the last event names this release."""
    from fmnist_tasks.announcement import find_unannounced_champion
    from fmnist_tasks.registry.stores import open_default_store

    emitted = {}
    for dataset, asset in ASSETS.items():
        last = list(get_current_context()["inlet_events"][asset].ascending(False).limit(1))
        announced = (last[0].extra or {}).get("version") if last else None
        if entry := find_unannounced_champion(open_default_store(dataset), str(announced)):
            emit_champion_event(dataset, version=entry.version, sequence=entry.sequence)
            emitted[asset.name] = entry.version
    if not emitted:
        raise AirflowSkipException("all champions have already been announced")
    return emitted


@dag(
    dag_id=WATCH_ID,
    dag_display_name="Watch",
    doc_md=link_pages(__doc__),
    description="Deliver waiting alerts, and alert if no run succeeds",
    schedule=CronTriggerTimetable("0 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    is_paused_upon_creation=False,
    **DAGS,
)
def fmnist_watch() -> None:
    """The graph: independent tasks."""
    check_pipeline()
    check_settings()
    announce_champions()


fmnist_watch()
