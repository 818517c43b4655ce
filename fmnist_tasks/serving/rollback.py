"""Roll back: make an earlier release the champion again, and withdraw the release that it replaces."""

from __future__ import annotations

import logging
from uuid import uuid4

from fmnist_tasks.alerts import Alert, send_alert
from fmnist_tasks.errors import READ_ERRORS, MissingError, RejectedError, SettingsError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Log
from fmnist_tasks.registry.pruning_markers import forbid_pruning
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.serving.release import verify_release
from fmnist_tasks.settings import MAX_REASON_LENGTH
from fmnist_tasks.text import make_printable

log = logging.getLogger(__name__)


def roll_back(
    store: Store, version: str, reason: str, *, actor: str, after: int | None = None, force: bool = False
) -> Entry:
    """Make an earlier release the champion again, and withdraw the release that it replaces.

    `after` is the sequence number of the log entry that the user wants to replace; by default, that of the current
    champion. The release must pass :func:`verify_release`. It must also have been the champion before and have the
    champion's classes, unless `force` waives both.

    Raises :class:`SettingsError` if the reason is invalid or the release is already the champion,
    :class:`ConflictError` if the champion changed after `after`, :class:`RejectedError` if a requirement is not met,
    and whatever `verify_release` raises.
    """
    reason = require_reason(reason)
    champion_log = champion.read_log(store)
    current = champion_log.champion
    if current is None:
        raise MissingError("there is no champion yet, so there is nothing to roll back")
    if current.version == version:
        raise SettingsError(f"{version} is already the champion")
    log.info("rolling back from %s to %s, requested by %s: %s", current.version, version, actor, reason)
    champion.require_signing(store.keys, champion_log)
    if not force:
        _require_former_champion(store, champion_log, current.version, version)
    with forbid_pruning(store, f"rollback to {version}"):
        verified = verify_release(store, version)
        entry = champion.append_entry(
            store,
            version=version,
            action="rollback",
            reason=reason,
            write_id=str(uuid4()),
            actor=actor,
            after=current.sequence if after is None else after,
            origin=find_origin(store, champion_log, current.version),
            manifest_sha256=verified["manifest_sha256"],
        )
    lifted = ", whose withdrawal is lifted" if version in champion_log.withdrawn else ""
    message = f"{entry.actor} rolled back from {current.version}, now withdrawn, to {version}{lifted}: {reason}"
    log.info("entry %d of the champion log: %s", entry.sequence, message)
    send_alert(Alert("champion changed", None, message, identity=f"entry {entry.sequence}", dataset=store.dataset))
    return entry


def require_reason(reason: str) -> str:
    """The reason as one printable line. Raises :class:`SettingsError` if it is empty or too long."""
    reason = make_printable(reason)
    if not reason:
        raise SettingsError("a reason is required; it is stored with the decision")
    if len(reason) > MAX_REASON_LENGTH:
        raise SettingsError(f"the reason has {len(reason):,} characters, more than {MAX_REASON_LENGTH}; shorten it")
    return reason


def _require_former_champion(store: Store, champion_log: Log, current: str, version: str) -> None:
    faults = []
    if not champion_log.has_been_champion(version):
        faults.append("it has never been the champion")
    try:
        champion_classes = releases.read_manifest(store, current, champion_log).classes
    except READ_ERRORS as error:
        faults.append(f"its classes cannot be compared with the champion's ({error})")
    else:
        if releases.read_manifest(store, version, champion_log).classes != champion_classes:
            faults.append(f"its classes differ from those of the champion {current}")
    if faults:
        raise RejectedError(
            f"cannot roll back to {version}: {', and '.join(faults)}; to roll back anyway, use `fmnist rollback "
            "--force`, or tick Force in the form of the DAG fmnist_rollback"
        )


def find_origin(store: Store, champion_log: Log, version: str) -> champion.Origin:
    """The origin of a release, from its manifest or, if that is missing or damaged, from the champion log."""
    try:
        return releases.make_manifest_origin(releases.read_manifest(store, version, champion_log))
    except READ_ERRORS as error:
        log.warning("using the champion log for the origin of %s: %s", version, error)
        return champion_log.find_origin(version)
