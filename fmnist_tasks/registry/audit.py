"""Audit of a whole store: champion log → manifests → files, and the promotions that runs recorded."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.champion import Log, read_log
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.runs import read_record_at
from fmnist_tasks.registry.signing import is_envelope
from fmnist_tasks.registry.store import Store, map_parallel
from fmnist_tasks.schemas.runs import PromotionResult, parse_result

_HEAD = re.compile(r"([0-9]{1,8}):([0-9a-f]{64})")


def audit_store(store: Store, expected_head: str | None = None) -> dict[str, Any]:
    """Check every log entry, then every manifest with its files; return a summary as JSON values.

    `head` in the summary is the number and digest of the newest entry. Keep it outside the store: a later audit that
    gets it as `expected_head` also detects a log that was truncated or replaced as a whole.

    Raises at the first fault: :class:`IntegrityError`, or :class:`MissingError` for a missing file; and
    :class:`SettingsError` for an expected head that is not valid.
    """
    champion_log = read_log(store)
    if expected_head is not None:
        _require_head(champion_log, expected_head)
    files = signed_releases = 0
    versions = releases.list_versions(store)
    for version in versions:
        document = releases.open_manifest(store, version, champion_log)
        map_parallel(partial(get_verified, store), document.manifest.files.values())
        files += len(document.manifest.files)
        signed_releases += document.signed_by is not None
    if fault := releases.find_missing_champion(store, champion_log):
        raise IntegrityError(fault)
    _require_recorded_promotions(store, champion_log)
    return {
        "entries": len(champion_log.entries),
        "signed_entries": sum(entry.signed_by is not None for entry in champion_log.entries),
        "releases": len(versions),
        "signed_releases": signed_releases,
        "files": files,
        "signatures": "verified" if store.keys.trusted else "not verified: FMNIST_TRUSTED_KEYS is not set",
        "champion": champion_log.champion.version if champion_log.champion else None,
        "head": f"{len(champion_log.entries)}:{champion_log.digests[-1]}" if champion_log.digests else None,
    }


def _require_head(champion_log: Log, expected: str) -> None:
    if not (match := _HEAD.fullmatch(expected)):
        raise SettingsError(
            f"{expected!r} is not the head of a champion log; pass the `head` that an earlier audit printed"
        )
    number, digest = int(match[1]), match[2]
    if len(champion_log.digests) < number or number == 0 or champion_log.digests[number - 1] != digest:
        raise IntegrityError(
            f"champion/: entry {number} is missing or differs from the one that the earlier audit printed (the log has "
            f"{len(champion_log.entries)} entries), so the log was truncated or replaced; restore it from a backup or "
            "earlier versions of its objects"
        )


def _require_recorded_promotions(store: Store, champion_log: Log) -> None:
    """Compare the records of promotions with the log, which shows entries that were lost together with their receipts.

    An unsigned record in a signed store is not evidence: it is forged, or older than the trusted keys, which hold the
    digests of the entries of that time.
    """
    for stat in store.list("runs/"):
        if not stat.key.endswith("/promote.json"):
            continue
        if store.keys.trusted and not is_envelope(store.get(stat.key, MAX_BYTES)):
            continue
        record = read_record_at(store, stat.key)
        if record.status != "done" or record.result is None:
            continue
        promoted = parse_result(PromotionResult, record, stat.key)
        number, version = promoted.sequence, promoted.version
        entry = champion_log.entries[number - 1] if 1 <= number <= len(champion_log.entries) else None
        if entry is None or entry.version != version:
            fault = f"is about {entry.version}" if entry else "is missing"
            raise IntegrityError(
                f"{stat.key}: says that entry {number} of the champion log promoted {version}, but that entry {fault}; "
                "restore it from a backup or an earlier version of the object"
            )
