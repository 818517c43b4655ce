"""Withdraw a release or an accepted batch, and restore it.

A candidate that repeats a withdrawn release is not promoted. A withdrawn batch leaves the dataset from the next run on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fmnist_tasks.errors import IntegrityError, MissingError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.service import find_origin, require_reason

if TYPE_CHECKING:
    from fmnist_tasks.data.batches import Accepted

log = logging.getLogger(__name__)


def withdraw(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Withdraw the release of that version, or else the batch of that name or digest; what was decided, as JSON.

    Raises :class:`MissingError` if there is neither, and :class:`RejectedError` if it is the champion or withdrawn
    already, or if the name means several batches.
    """
    from fmnist_tasks.data import batches

    reason = require_reason(reason)
    if name in releases.versions(store):
        entries = champion.read_log(store)
        return _append(store, entries, name, "withdraw", reason, actor, find_origin(store, entries, name))
    return _logged("withdraw", _decide(batches.withdraw, store, name, actor, reason), actor, reason)


def restore(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Lift the withdrawal of a release, which may have been pruned, or else of a batch; what was decided, as JSON.

    Raises :class:`MissingError` if there is neither, and :class:`RejectedError` if it is not withdrawn.
    """
    from fmnist_tasks.data import batches

    reason = require_reason(reason)
    entries = champion.read_log(store)
    if name in entries.withdrawn or name in releases.versions(store):
        return _append(store, entries, name, "restore", reason, actor, champion.Origin())
    return _logged("restore", _decide(batches.restore, store, name, actor, reason), actor, reason)


def _decide(act: Callable[..., Accepted], store: Store, name: str, actor: str, reason: str) -> dict[str, Any]:
    try:
        return act(store, name, by=actor, reason=reason).as_json()
    except MissingError as error:
        told = f"there is neither a release nor a batch {name}; `fmnist releases` and `fmnist batches` list them"
        raise MissingError(told) from error


def _append(
    store: Store,
    entries: champion.Log,
    version: str,
    action: champion.Action,
    reason: str,
    actor: str,
    origin: champion.Origin,
) -> dict[str, Any]:
    entry = champion.append(
        store,
        version=version,
        action=action,
        reason=reason,
        write_id=str(uuid4()),
        actor=actor,
        origin=origin,
        manifest_sha256=_find_manifest_sha256(store, entries, version),
    )
    return _logged(action, entry.as_json(), actor, reason)


def _find_manifest_sha256(store: Store, entries: champion.Log, version: str) -> str | None:
    """The digest of a release's manifest, or None if the release was pruned or its manifest is damaged."""
    try:
        return releases.open_manifest(store, version, entries).sha256
    except (MissingError, IntegrityError) as error:
        log.warning("the entry names no manifest of %s: %s", version, error)
        return None


def _logged(action: str, decided: dict[str, Any], actor: str, reason: str) -> dict[str, Any]:
    log.info("%s by %s: %s, because: %s", action, actor, decided, reason)
    return decided
