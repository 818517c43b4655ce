"""Withdraw a release or an accepted batch, and restore it.

A candidate that repeats a withdrawn release is not promoted. A withdrawn batch is excluded from the dataset from the
next run on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fmnist_tasks.errors import READ_ERRORS, MissingError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Action
from fmnist_tasks.serving.rollback import find_origin, require_reason
from fmnist_tasks.settings import name_command

if TYPE_CHECKING:
    from fmnist_tasks.data.accepted_batches import AcceptedBatch

log = logging.getLogger(__name__)


def withdraw(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Withdraw the release with this version, or else the batch with this name or digest; return the decision as JSON.

    Raises :class:`MissingError` if there is neither, and :class:`RejectedError` if it is the champion, is already
    withdrawn, or if the name matches several batches.
    """
    from fmnist_tasks.data import accepted_batches

    reason = require_reason(reason)
    if name in releases.list_versions(store):
        champion_log = champion.read_log(store)
        return _append_withdrawal(
            store, champion_log, name, "withdraw", reason, actor, find_origin(store, champion_log, name)
        )
    return _log_decision(
        "withdraw", _decide_batch(accepted_batches.withdraw_batch, store, name, actor, reason), actor, reason
    )


def restore(store: Store, name: str, reason: str, *, actor: str) -> dict[str, Any]:
    """Lift the withdrawal of a release, even a pruned one, or else of a batch; return the decision as JSON.

    Raises :class:`MissingError` if there is neither, and :class:`RejectedError` if it is not withdrawn.
    """
    from fmnist_tasks.data import accepted_batches

    reason = require_reason(reason)
    champion_log = champion.read_log(store)
    if name in champion_log.withdrawn or name in releases.list_versions(store):
        return _append_withdrawal(store, champion_log, name, "restore", reason, actor, champion.Origin())
    return _log_decision(
        "restore", _decide_batch(accepted_batches.restore_batch, store, name, actor, reason), actor, reason
    )


def _decide_batch(
    act: Callable[..., AcceptedBatch], store: Store, name: str, actor: str, reason: str
) -> dict[str, Any]:
    try:
        return act(store, name, by=actor, reason=reason).to_json()
    except MissingError as error:
        raise MissingError(
            f"there is neither a release nor a batch {name!r}; {name_command(store.dataset, 'releases')} and "
            f"{name_command(store.dataset, 'batches')} list them"
        ) from error


def _append_withdrawal(
    store: Store,
    champion_log: champion.Log,
    version: str,
    action: Action,
    reason: str,
    actor: str,
    origin: champion.Origin,
) -> dict[str, Any]:
    entry = champion.append_entry(
        store,
        version=version,
        action=action,
        reason=reason,
        write_id=str(uuid4()),
        actor=actor,
        origin=origin,
        manifest_sha256=_find_manifest_sha256(store, champion_log, version),
    )
    return _log_decision(action, entry.to_json(), actor, reason)


def _find_manifest_sha256(store: Store, champion_log: champion.Log, version: str) -> str | None:
    """The digest of a release's manifest; None if the release was pruned or its manifest is damaged."""
    try:
        return releases.open_manifest(store, version, champion_log).sha256
    except READ_ERRORS as error:
        log.warning("the log entry has no manifest digest for %s: %s", version, error)
        return None


def _log_decision(action: str, decision: dict[str, Any], actor: str, reason: str) -> dict[str, Any]:
    log.info("%s by %s: %s; reason: %s", action, actor, decision, reason)
    return decision
