"""The champion log: `champion/<sequence>.json`, one sealed entry for each decision about a release, never rewritten.

A promotion or a rollback makes a release the champion. A rollback also withdraws the release that it replaces; a
release can be withdrawn and restored without one, too. A candidate that repeats a withdrawn release is not promoted.

An append is one conditional create of the next number, so two writers cannot both win. Each entry has the ID of its
write: a writer that finds this ID in the log knows that its write succeeded, even if the response was lost. After each
entry, the writer leaves a receipt, `champion-receipts/<sequence>.txt`. It shows if the newest entry is lost.

Each entry names the digests of its predecessor and of its release's manifest, and is signed if there are keys. So a
reader of the whole log detects every change of an entry or of a manifest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from fmnist_tasks.errors import (
    ConflictError,
    FmnistError,
    IntegrityError,
    MissingError,
    RejectedError,
    SettingsError,
    StoreError,
)
from fmnist_tasks.registry.signing import Keys, compute_key_id, digest_entries
from fmnist_tasks.registry.store import Stat, Store, map_parallel, read_clock
from fmnist_tasks.schemas.base import VERSION_PATTERN
from fmnist_tasks.schemas.releases import Action, Entry
from fmnist_tasks.text import make_printable

log = logging.getLogger(__name__)

_CHAMPION_ACTIONS = {"promote", "rollback"}  # they make a release the champion
_ENTRY_PREFIX, _RECEIPT_PREFIX = "champion/", "champion-receipts/"
_ENTRY_KEY, _RECEIPT_KEY = re.compile(r"champion/[0-9]{8}\.json"), re.compile(r"champion-receipts/[0-9]{8}\.txt")
_MODEL_DIGITS = re.compile(r"-([0-9a-f]{8})(\.\d+)?$")  # of a version
_MAX_ATTEMPTS = 100  # to append an entry while other writers append theirs
_MAX_ENTRY_BYTES = 64 << 10


@dataclass(frozen=True)
class Origin:
    """The digests of a release's model and of its inputs; None if unknown."""

    model_sha256: str | None = None
    inputs: str | None = None  # data, code and parameters


@dataclass(frozen=True)
class Log:
    """All entries, oldest first, and the digests (SHA-256, hex) of their stored bytes."""

    entries: tuple[Entry, ...] = ()
    digests: tuple[str, ...] = ()

    @property
    def champion(self) -> Entry | None:
        """The entry that made the champion, or None before the first promotion."""
        return next((entry for entry in reversed(self.entries) if entry.changes_champion), None)

    @property
    def previous_champion(self) -> str | None:
        """The release that was champion before the current one, or None if there was none."""
        champions = [entry.version for entry in self.entries if entry.changes_champion]
        return next((version for version in reversed(champions) if version != champions[-1]), None)

    @property
    def withdrawn(self) -> dict[str, Entry]:
        """The entries that withdrew a release, by its version; without releases that were restored."""
        withdrawals: dict[str, Entry] = {}
        champion: str | None = None
        for entry in self.entries:
            if entry.action == "withdraw":
                withdrawals[entry.version] = entry
            elif entry.action == "restore":
                withdrawals.pop(entry.version, None)
            else:
                if entry.action == "rollback" and champion not in {None, entry.version}:
                    withdrawals[str(champion)] = entry
                withdrawals.pop(entry.version, None)
                champion = entry.version
        return withdrawals

    @property
    def newest_key(self) -> str | None:
        """The ID of the key that signed the newest signed entry; None if no entry is signed."""
        return next((entry.signed_by for entry in reversed(self.entries) if entry.signed_by), None)

    def find_manifest_entry(self, version: str) -> Entry | None:
        """Return the newest entry with the digest of the release's manifest."""
        entries = reversed(self.entries)
        return next((entry for entry in entries if entry.version == version and entry.manifest_sha256), None)

    def has_been_champion(self, version: str) -> bool:
        """Return whether the release is or was the champion."""
        return any(entry.changes_champion and entry.version == version for entry in self.entries)

    def find_origin(self, version: str) -> Origin:
        """Return the origin of a release, as far as the log has it."""
        for entry in self.entries:
            if entry.action == "promote" and entry.version == version and entry.model_sha256:
                return Origin(entry.model_sha256, entry.inputs)
        return Origin()

    def find_withdrawal(self, candidate: Origin) -> tuple[str, Entry] | None:
        """Return the withdrawn release that the candidate repeats, and the entry that withdrew it, or None.

        It repeats a release if the models are bit-identical, or have the same data, code and parameters. If the log has
        only the version, its suffix, the first digits of the model's digest, is compared.
        """
        for version, entry in self.withdrawn.items():
            digits = _MODEL_DIGITS.search(version)
            digest = entry.model_sha256 or (digits and digits[1])
            same_model = bool(digest and candidate.model_sha256 and candidate.model_sha256.startswith(digest))
            if same_model or (candidate.inputs is not None and candidate.inputs == entry.inputs):
                return version, entry
        return None


def read_log(store: Store, known: Log = Log()) -> Log:
    """Return all entries; those in `known` are not read again.

    Raises :class:`IntegrityError` for an entry that is missing, changed, or not signed as the store's keys require.
    """
    after = len(known.entries)
    keys = [stat.key for stat in _list_entries(store, after)]
    entries, digests = list(known.entries), list(known.digests)
    for key, (entry, digest) in zip(keys, map_parallel(partial(_read_entry, store), keys), strict=True):
        _require_link(key, entry, digests[-1] if digests else None)
        _require_valid_signer(store.keys, key, entry, entries[-1] if entries else None)
        entries.append(entry)
        digests.append(digest)
    _require_sealed_entries(store.keys, digests)
    return Log(tuple(entries), tuple(digests))


def list_entries(store: Store) -> list[Entry]:
    """Return all entries, oldest first; raises like :func:`read_log`."""
    return list(read_log(store).entries)


def find_champion(store: Store) -> Entry | None:
    """Return the entry that made the champion, or None before the first promotion; raises like :func:`read_log`.

    Reads the log backwards, up to that entry. If one of these entries is not signed by the newest trusted key, only the
    whole log can verify it, and is read.
    """
    following: Entry | None = None
    for stat in reversed(_list_entries(store)):
        entry, digest = _read_entry(store, stat.key)
        if store.keys.trusted and entry.signed_by != store.keys.trusted.keys[-1].id:
            return read_log(store).champion
        _require_valid_signer(store.keys, stat.key, entry, None)
        if following:
            _require_link(_make_entry_key(following.sequence), following, digest)
            _require_valid_signer(store.keys, _make_entry_key(following.sequence), following, entry)
        if entry.changes_champion:
            return entry
        following = entry
    return None


def find_champion_at(store: Store, moment: datetime) -> Entry | None:
    """Return the entry that made the champion of that moment, or None before the first promotion.

    An entry cannot be later than the entries after it, or than the store's time of its write. Both correct the time of
    an entry from a clock that was ahead.
    """
    latest, entries = datetime.max.replace(tzinfo=UTC), read_log(store).entries
    write_times = {stat.key: stat.modified for stat in _list_entries(store)}
    for entry in reversed(entries):
        latest = min(latest, datetime.fromisoformat(entry.time), write_times[_make_entry_key(entry.sequence)])
        if entry.changes_champion and latest <= moment:
            return entry
    return None


def append_entry(
    store: Store,
    *,
    version: str,
    action: Action,
    reason: str,
    write_id: str,
    actor: str = "",
    after: int | None = None,
    origin: Origin | None = None,
    manifest_sha256: str | None = None,
) -> Entry:
    """Write the next entry, if it is still valid, and return it.

    `after` is the sequence of the entry that made the champion which a promotion or rollback replaces (0: no champion).
    `origin` is that of the release that is promoted or withdrawn; a rollback withdraws the champion. `manifest_sha256`
    is the digest of the manifest of `version`.

    If the log already has an entry with this `write_id`, action and version, that entry is returned and nothing is
    written: a response was lost, or the writer runs again.

    Raises :class:`ConflictError` if the champion has changed, :class:`RejectedError` if the candidate repeats a
    withdrawn release, or if the release cannot be withdrawn or restored, and :class:`SettingsError` if this process
    cannot sign the entry.
    """
    require_version(version)
    origin, champion_log = origin or Origin(), Log()
    for _ in range(_MAX_ATTEMPTS):
        champion_log = read_log(store, champion_log)
        for entry in champion_log.entries:
            if (entry.write_id, entry.action, entry.version) == (write_id, action, version):
                _write_receipt(store, champion_log.entries[-1].sequence)
                return entry
        current = champion_log.champion
        if action in _CHAMPION_ACTIONS:
            _require_unchanged_champion(champion_log, version, action, after or 0)
        if action == "promote" and (repeated := champion_log.find_withdrawal(origin)):
            raise RejectedError(describe_withdrawal(version, *repeated))
        if action in {"withdraw", "restore"}:
            _require_withdrawal_state(champion_log, version, action)
        require_signing(store.keys, champion_log)
        new = Entry(
            sequence=len(champion_log.entries) + 1,
            version=version,
            action=action,
            reason=make_printable(reason),
            write_id=write_id,
            time=read_clock(store).isoformat(timespec="seconds"),
            actor=make_printable(actor),
            replaces=current.version if current and action in _CHAMPION_ACTIONS else None,
            model_sha256=origin.model_sha256,
            inputs=origin.inputs,
            manifest_sha256=manifest_sha256,
            previous_sha256=champion_log.digests[-1] if champion_log.digests else None,
        )
        key = _make_entry_key(new.sequence)
        content = store.keys.encode(key, "champion-entry", new.to_json())
        if len(content) > _MAX_ENTRY_BYTES:
            raise SettingsError(
                f"an entry of the champion log may have {_MAX_ENTRY_BYTES:,} bytes, but this one has {len(content):,}; "
                "nothing was changed. Shorten the reason"
            )
        if store.put_if_absent(key, content):
            _write_receipt(store, new.sequence)
            return new.copy_signed_by(store.keys.signing_id)
    raise StoreError(
        f"cannot add {version} to the champion log: other writers were first, {_MAX_ATTEMPTS} times in a row; retry "
        "later"
    )


def require_version(version: str) -> None:
    """Raise :class:`MissingError` for text that cannot be the version of a release, such as a renamed folder's name."""
    if not re.fullmatch(VERSION_PATTERN, version):
        raise MissingError(f"{version!r:.100} is not the version of a release; `fmnist releases` lists all")


def require_signing(keys: Keys, champion_log: Log) -> None:
    """Raise :class:`SettingsError` if this process cannot sign an entry that readers of the log would accept."""
    if champion_log.newest_key is None and keys.trusted is None:
        return
    signing = compute_key_id(keys.require_signing_key().public_key())
    if not keys.is_valid_signer(signing, len(champion_log.entries) + 1, champion_log.newest_key):
        raise SettingsError(
            f"FMNIST_SIGNING_KEY is key {signing[:16]}, which was replaced and may not sign entry "
            f"{len(champion_log.entries) + 1} of the champion log, so nothing was changed; give this process the "
            "newest key"
        )


def describe_withdrawal(candidate: str, version: str, entry: Entry) -> str:
    """Return why a candidate that repeats a withdrawn release is not promoted, and what to do."""
    actor = f" by {entry.actor}" if entry.actor else ""
    relation = (
        f"is release {version}"
        if candidate == version
        else f"is the model of release {version}, or comes from the same data, code and parameters"
    )
    return (
        f"{candidate} {relation}, and that release was withdrawn{actor} on {entry.time[:10]}: {entry.reason}. "
        f"Withdraw the batch that caused it, or lift the withdrawal (fmnist restore {version} --reason …)"
    )


def _require_unchanged_champion(champion_log: Log, version: str, action: Action, after: int) -> None:
    current = champion_log.champion
    if (current.sequence if current else 0) == after:
        return
    expected = next((entry.version for entry in champion_log.entries if entry.sequence == after), "none")
    actual = f"and is now {current.version} (log entry {current.sequence})" if current else "and there is none now"
    consequence = (
        f"{version} is not promoted. Clear evaluate_tuned and the tasks after it to compare it with the new champion"
        if action == "promote"
        else f"nothing was rolled back. Look at the new champion, then roll back to {version} again if necessary"
    )
    raise ConflictError(f"the champion has changed in the meantime: it was {expected} {actual}; {consequence}")


def _require_withdrawal_state(champion_log: Log, version: str, action: Action) -> None:
    current, withdrawn = champion_log.champion, champion_log.withdrawn
    if action == "restore" and version not in withdrawn:
        raise RejectedError(f"release {version} is not withdrawn; `fmnist history` shows which releases were")
    if action == "withdraw" and version in withdrawn:
        raise RejectedError(f"release {version} is already withdrawn: {withdrawn[version].reason}")
    if action == "withdraw" and current and current.version == version:
        raise RejectedError(f"{version} is the champion: roll back to another release, which withdraws it")


def _list_entries(store: Store, after: int = 0) -> list[Stat]:
    """Return the objects of all entries after a number; raises :class:`IntegrityError` if one is missing.

    Other objects below the prefixes are ignored. Receipts are listed first, so an entry that is written between the two
    listings does not appear to be missing.
    """
    receipts = [
        stat.key
        for stat in store.list(_RECEIPT_PREFIX, after=_make_receipt_key(after))
        if _RECEIPT_KEY.fullmatch(stat.key)
    ]
    entries = [
        stat for stat in store.list(_ENTRY_PREFIX, after=_make_entry_key(after)) if _ENTRY_KEY.fullmatch(stat.key)
    ]
    for expected, stat in enumerate(entries, after + 1):
        if stat.key != _make_entry_key(expected):
            raise IntegrityError(
                f"{stat.key}: the preceding entry {expected} of the champion log is missing; restore it from a backup "
                "or an earlier version of the object"
            )
    newest = after + len(entries)
    if receipts and receipts[-1] > _make_receipt_key(newest):
        raise IntegrityError(
            f"{_make_entry_key(newest + 1)} is missing, although {receipts[-1]} shows that it was written. Restore it "
            "from a backup. If that is impossible and you accept the loss, delete the receipts from "
            f"{_make_receipt_key(newest + 1)} on, as the store's administrator"
        )
    return entries


def _write_receipt(store: Store, sequence: int) -> None:
    """Write the receipt of an entry; an error is only logged, since the entry is valid without it."""
    try:
        store.put(_make_receipt_key(sequence), f"{_make_entry_key(sequence)} was written.\n".encode())
    except FmnistError as error:
        log.error("entry %d is in the champion log, but its receipt cannot be written: %s", sequence, error)


def _make_receipt_key(sequence: int) -> str:
    return f"{_RECEIPT_PREFIX}{sequence:08d}.txt"


def _make_entry_key(sequence: int) -> str:
    return f"{_ENTRY_PREFIX}{sequence:08d}.json"


def _read_entry(store: Store, key: str) -> tuple[Entry, str]:
    """Return an entry and the digest of its stored bytes."""
    document = store.keys.decode(key, "champion-entry", store.get(key, _MAX_ENTRY_BYTES))
    entry = Entry.parse(document.content, key).copy_signed_by(document.signed_by)
    if _make_entry_key(entry.sequence) != key:
        raise IntegrityError(
            f"{key} contains entry {entry.sequence} of the champion log, so it was copied or renamed; restore the "
            "original from a backup or an earlier version of the object"
        )
    return entry, document.sha256


def _require_valid_signer(keys: Keys, key: str, entry: Entry, previous: Entry | None) -> None:
    """Raise :class:`IntegrityError` if the entry has to be signed and is not, or if its key was replaced by then.

    `previous` is None for the first entry.
    """
    earlier = previous.signed_by if previous else None
    if entry.signed_by is None:
        unsigned = keys.trusted.unsigned_count if keys.trusted else entry.sequence - 1 if earlier else entry.sequence
        if entry.sequence > unsigned:
            raise IntegrityError(
                f"{key} is unsigned, but entries after number {unsigned} must be signed. "
                "Either a process without the signing key wrote it, or it is forged. As the store's administrator, "
                "delete it and its receipt below champion-receipts/ (docs/signing.md)"
            )
    elif not keys.is_valid_signer(entry.signed_by, entry.sequence, earlier):
        raise IntegrityError(
            f"{key} is signed by key {entry.signed_by[:16]}, which had been replaced or revoked by then, so it may be "
            "forged. As the store's administrator, delete it and its receipt below champion-receipts/ (docs/signing.md)"
        )


def _require_link(key: str, entry: Entry, digest: str | None) -> None:
    """Raise :class:`IntegrityError` unless `digest` is that of the predecessor that the entry names.

    Unsigned entries of earlier versions name none.
    """
    if entry.previous_sha256 != digest and (entry.previous_sha256 or entry.signed_by):
        raise IntegrityError(
            f"{key} names a predecessor other than {_make_entry_key(entry.sequence - 1)}, so one of the two was "
            "replaced; restore the original from a backup or an earlier version of the object"
        )


def _require_sealed_entries(keys: Keys, digests: Sequence[str]) -> None:
    """Raise :class:`IntegrityError` if an entry from before signing began, or from before a revocation, has changed."""
    for sealed in keys.trusted.sealed_entries if keys.trusted else ():
        if digest_entries(digests[: sealed.count]) != sealed.sha256:
            raise IntegrityError(
                f"{_make_entry_key(1)} to {_make_entry_key(sealed.count)}: differ from the entries that existed when "
                "signing began or a key was revoked (trusted keys); restore the originals from a backup or earlier "
                "versions of the objects"
            )
