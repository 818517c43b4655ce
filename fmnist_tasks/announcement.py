"""Announce a change of the champion where no task of Airflow does it: on the registry page and in a shell."""

from __future__ import annotations

import logging
import os

from fmnist_tasks.registry.champion import Entry
from fmnist_tasks.settings import CHAMPION_ASSET

log = logging.getLogger(__name__)


def announce_champion(entry: Entry) -> bool:
    """Emit the champion's asset event; False, and a log line, if Airflow's database is out of reach of this process.

    `fmnist_watch` then emits it.
    """
    if "AIRFLOW_HOME" not in os.environ and "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        log.warning("no Airflow is configured here; fmnist_watch announces the new champion")
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
        log.warning("fmnist_watch announces the new champion; Airflow's database is out of reach: %s", error)
        return False
    if event is None:
        log.warning("fmnist_watch announces the new champion; Airflow does not know its asset yet")
    return event is not None
