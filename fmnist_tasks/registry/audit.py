"""The whole chain from the store alone: champion log → manifests → files, and what runs say that they promoted."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.champion import Log, read_log
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.runs import read_at
from fmnist_tasks.registry.signing import is_envelope
from fmnist_tasks.registry.store import Store, side_by_side

_HEAD = re.compile(r"([0-9]{1,8}):([0-9a-f]{64})")


def audit(store: Store, expected_head: str | None = None) -> dict[str, Any]:
    """Check every entry, manifest and file, in the order of the log and then of the releases; what was found, as JSON.

    `head` in the result, the number and digest of the newest entry, is to be kept away from the store: a later audit
    that is given it as `expected_head` also notices a log that was cut off or replaced as a whole.

    Raises for the first fault: :class:`IntegrityError`, or :class:`MissingError` for a file that is gone; and
    :class:`SettingsError` for an expected head that is none.
    """
    log = read_log(store)
    if expected_head is not None:
        _check_head(log, expected_head)
    files = signed = 0
    versions = releases.versions(store)
    for version in versions:
        document = releases.open_manifest(store, version, log)
        side_by_side(partial(get_verified, store), document.content["files"].values())
        files += len(document.content["files"])
        signed += document.signed_by is not None
    if log.champion and log.champion.version not in versions:
        raise IntegrityError(
            f"releases/{log.champion.version}/manifest.json: is missing, although the release is the champion by entry "
            f"{log.champion.sequence} of the log; recover it from a backup or an earlier version of the object"
        )
    _check_promotions(store, log)
    return {
        "entries": len(log.entries),
        "signed_entries": sum(entry.signed_by is not None for entry in log.entries),
        "releases": len(versions),
        "signed_releases": signed,
        "files": files,
        "signatures": "verified" if store.keys.trusted else "not verified: FMNIST_TRUSTED_KEYS is not set",
        "champion": log.champion.version if log.champion else None,
        "head": f"{len(log.entries)}:{log.digests[-1]}" if log.digests else None,
    }


def _check_head(log: Log, expected: str) -> None:
    if not (found := _HEAD.fullmatch(expected)):
        raise SettingsError(
            f"{expected!r} is not the head of a champion log; pass the `head` that an earlier audit printed"
        )
    number, digest = int(found[1]), found[2]
    if len(log.digests) < number or number == 0 or log.digests[number - 1] != digest:
        raise IntegrityError(
            f"champion/: entry {number} is missing or is not the one that the earlier audit saw ({len(log.entries)} "
            "entries are there), so the log was truncated or replaced; recover it from a backup or earlier versions of "
            "its objects"
        )


def _check_promotions(store: Store, log: Log) -> None:
    """Hold the records of promotions against the log: they tell of entries that were lost together with receipts.

    An unsigned record in a signed store tells of nothing: it is forged, or older than the keys, which have the digests
    of the entries from then.
    """
    for stat in store.list("runs/"):
        if not stat.key.endswith("/promote.json"):
            continue
        if store.keys.trusted and not is_envelope(store.get(stat.key, MAX_BYTES)):
            continue
        record = read_at(store, stat.key)
        result = record.get("result")
        if record.get("status") != "done" or not isinstance(result, dict):
            continue
        number, version = result.get("sequence"), result.get("version")
        if number is None:
            continue
        entry = log.entries[number - 1] if isinstance(number, int) and 1 <= number <= len(log.entries) else None
        if entry is None or entry.version != version:
            found = f"is about {entry.version}" if entry else "is missing"
            raise IntegrityError(
                f"{stat.key}: says that entry {number} of the champion log promoted {version}, but that entry {found}; "
                "recover it from a backup or an earlier version of the object"
            )
