"""Announce champion changes that no task announces: those made by the Releases page, a shell or a killed task."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta

from fmnist_tasks.registry.champion import find_champion
from fmnist_tasks.registry.store import Store, is_ahead, read_clock
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.settings import name_champion_asset

log = logging.getLogger(__name__)

_GRACE = timedelta(minutes=10)  # time for whoever changed the champion to announce it


def find_unannounced_champion(store: Store, announced: str) -> Entry | None:
    """The log entry of the champion; None if its release was announced last, or if the entry is not 10 minutes old."""
    entry = find_champion(store)
    if entry is None or entry.version == announced:
        return None
    now, promoted = read_clock(store), datetime.fromisoformat(entry.time)
    return entry if now - promoted > _GRACE or is_ahead(promoted, now) else None


def announce_champion(entry: Entry, dataset: str) -> bool:
    """Emit the asset event of a dataset's champion; return whether that succeeded.

    It fails, with a warning in the log, if this process cannot use Airflow's database. `fmnist_watch` then emits it.
    """
    if "AIRFLOW_HOME" not in os.environ and "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        log.warning(
            "Airflow is not configured here; fmnist_watch emits the asset event of the new champion within the hour"
        )
        return False
    try:
        from airflow.assets.manager import asset_manager
        from airflow.sdk import Asset
        from airflow.serialization.definitions.assets import SerializedAssetUniqueKey
        from airflow.utils.session import create_session

        asset = Asset(name_champion_asset(dataset))
        key = SerializedAssetUniqueKey(asset.name, asset.uri)
        extra = {"version": entry.version, "sequence": entry.sequence}
        with create_session() as session:
            event = asset_manager.register_asset_change(asset=key, extra=extra, session=session)
    except Exception as error:  # noqa: BLE001 - the champion has changed, whatever Airflow or its database raise
        log.warning(
            "cannot use Airflow's database; fmnist_watch emits the asset event of the new champion within the hour: %s",
            error,
        )
        return False
    if event is None:
        log.warning(
            "Airflow does not know the champion's asset yet; fmnist_watch emits the event once the DAGs are parsed"
        )
    return event is not None
