"""What the outbox of alerts holds in a store."""

from __future__ import annotations

from typing import Any

from fmnist_tasks.alerts.outbox import DELIVERED, PENDING, UNDELIVERABLE, clean_up, find_pending
from fmnist_tasks.registry.documents import read_document
from fmnist_tasks.registry.store import Store


def read_alerts(store: Store, *prefixes: str) -> list[dict[str, Any]]:
    """The alerts below these prefixes; by default all, delivered or not."""
    keys = [stat.key for prefix in prefixes or (PENDING, DELIVERED, UNDELIVERABLE) for stat in store.list(prefix)]
    return [read_document(store, key) for key in keys if key.count(".") == 1]


def close_alerts(store: Store) -> None:
    """Let all that waits be delivered, so that steps which run again send nothing."""
    for alert_id in find_pending(store):
        store.put(f"{DELIVERED}{alert_id}.json", store.get(f"{PENDING}{alert_id}.json"))
        clean_up(store, alert_id)
