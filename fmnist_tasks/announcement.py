"""Announce a change of the champion that no task announces: one by the registry page, a shell, or a killed task."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta

from fmnist_tasks.registry.champion import Entry, champion
from fmnist_tasks.registry.store import Store, is_ahead, read_clock
from fmnist_tasks.settings import CHAMPION_ASSET

log = logging.getLogger(__name__)

_GRACE = timedelta(minutes=10)  # in which whoever changed the champion announces it


def find_unannounced(store: Store, announced: str) -> Entry | None:
    """The entry that made the champion, unless that is the release announced last, or was made it just now."""
    entry = champion(store)
    if entry is None or entry.version == announced:
        return None
    now, made = read_clock(store), datetime.fromisoformat(entry.time)
    return entry if now - made > _GRACE or is_ahead(made, now) else None


def announce_champion(entry: Entry) -> bool:
    """Emit the champion's asset event; False, and a log line, if Airflow's database is out of reach of this process.

    `fmnist_watch` then emits it.
    """
    if "AIRFLOW_HOME" not in os.environ and "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        log.warning(
            "no Airflow is configured here: fmnist_watch emits the asset event of the new champion within the hour"
        )
        return False
    try:
        from airflow.assets.manager import asset_manager
        from airflow.sdk import Asset
        from airflow.serialization.definitions.assets import SerializedAssetUniqueKey
        from airflow.utils.session import create_session

        asset = Asset(CHAMPION_ASSET)
        key = SerializedAssetUniqueKey(asset.name, asset.uri)
        extra = {"version": entry.version, "sequence": entry.sequence}
        with create_session() as session:
            event = asset_manager.register_asset_change(asset=key, extra=extra, session=session)
    except Exception as error:  # noqa: BLE001 - the champion has changed, whatever Airflow or its database raise
        log.warning(
            "fmnist_watch emits the asset event of the new champion within the hour, since Airflow's database "
            "is out of reach here: %s",
            error,
        )
        return False
    if event is None:
        log.warning("fmnist_watch emits the asset event of the new champion, once Airflow has read the DAGs")
    return event is not None
