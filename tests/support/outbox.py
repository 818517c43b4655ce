"""The alerts in the outbox of a store."""

from __future__ import annotations

from typing import Any

from fmnist_tasks.alerts.outbox import DELIVERED, PENDING, UNDELIVERABLE, clean_up, find_pending
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.store import Store


def read_alerts(store: Store, *prefixes: str) -> list[dict[str, Any]]:
    """Return the alerts below these prefixes; by default all, delivered or not."""
    keys = [stat.key for prefix in prefixes or (PENDING, DELIVERED, UNDELIVERABLE) for stat in store.list(prefix)]
    return [read_document(store, key) for key in keys if key.count(".") == 1]


def mark_alerts_delivered(store: Store) -> None:
    """Mark all pending alerts as delivered. Steps that run again then send nothing."""
    for alert_id in find_pending(store):
        store.put(f"{DELIVERED}{alert_id}.json", store.get(f"{PENDING}{alert_id}.json"))
        clean_up(store, alert_id)
