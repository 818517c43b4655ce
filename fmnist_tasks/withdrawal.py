"""Withdraw a release, so that no candidate which repeats it is promoted, and restore it."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.service import find_origin, require_reason

log = logging.getLogger(__name__)


def withdraw(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Withdraw a release; the log entry as JSON.

    Raises :class:`MissingError` if there is no such release, and :class:`RejectedError` if it is the champion or
    withdrawn already.
    """
    releases.read_manifest(store, name)
    return _append(store, name, "withdraw", reason, actor, find_origin(store, champion.read_log(store), name))


def restore(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Lift the withdrawal of a release; the log entry as JSON. Raises :class:`RejectedError` if it is not withdrawn."""
    return _append(store, name, "restore", reason, actor, champion.Origin())


def _append(
    store: Store, version: str, action: champion.Action, reason: str, actor: str, origin: champion.Origin
) -> dict[str, Any]:
    entry = champion.append(
        store,
        version=version,
        action=action,
        reason=require_reason(reason),
        write_id=str(uuid4()),
        actor=actor,
        origin=origin,
    )
    log.info("release %s: %s by %s, entry %d of the champion log: %s", version, action, actor, entry.sequence, reason)
    return entry.as_json()
