"""The champion log: `champion/<sequence>.json`, one sealed entry for each decision about a release, never rewritten.

A promotion or a rollback makes a release the champion. A rollback also withdraws the release that it replaces; a
release can be withdrawn and restored on its own as well. A candidate that repeats a withdrawn release is not promoted.

Appending is one conditional create of the next number, so that two writers cannot both win. Each entry carries the
writer's id: a writer that finds its own entry knows that it was written, whatever became of the response. After each
entry a receipt is left, `champion-receipts/<sequence>.txt`: if the newest entry is lost, its receipt tells.

Each entry names the digest of its predecessor and that of its release's manifest, and is signed if there are keys. So
whoever reads the whole log sees whether any entry, or the manifest of a release, was changed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from fmnist_tasks.errors import ConflictError, FmnistError, IntegrityError, RejectedError, SettingsError, StoreError
from fmnist_tasks.registry.signing import Keys, compute_key_id, digest_entries
from fmnist_tasks.registry.store import Stat, Store, read_clock, side_by_side
from fmnist_tasks.text import make_printable

logger = logging.getLogger(__name__)

Action = Literal["promote", "rollback", "withdraw", "restore"]

_CHANGES = {"promote", "rollback"}  # the actions that make a release the champion
_ENTRIES, _RECEIPTS = "champion/", "champion-receipts/"
_ENTRY, _RECEIPT = re.compile(r"champion/[0-9]{8}\.json"), re.compile(r"champion-receipts/[0-9]{8}\.txt")
_ATTEMPTS = 100  # to append an entry while others append theirs
_MAX_ENTRY_BYTES = 64 << 10


@dataclass(frozen=True)
class Origin:
    """What a release came from, as digests; None for what is not known."""

    model_sha256: str | None = None
    inputs: str | None = None  # of data, code and parameters


@validated_dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Entry:
    """One decision about a release."""

    sequence: int  # 1, 2, 3, … without gaps
    version: str  # the release that it is about
    action: Action
    reason: str
    write_id: str  # who wrote it: the run id of a promotion, otherwise a random id
    time: str  # UTC, ISO 8601, by the store's clock
    actor: str = ""  # the user, or what started the run; entries of earlier versions do not say
    replaces: str | None = None  # the champion before it, if it makes another release the champion
    # Of the release that is promoted, or that is withdrawn from here on.
    model_sha256: str | None = None
    inputs: str | None = None
    # SHA-256 of the stored bytes of the release's manifest, and of the entry before this one.
    manifest_sha256: str | None = None
    previous_sha256: str | None = None
    signed_by: str | None = None  # id of the key; not part of what is signed

    @property
    def changes_champion(self) -> bool:
        """Whether its release is the champion from here on."""
        return self.action in _CHANGES

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return asdict(self)

    def as_document(self) -> dict[str, Any]:
        """What is stored of it."""
        return {name: value for name, value in asdict(self).items() if name != "signed_by"}


@dataclass(frozen=True)
class Log:
    """All entries, oldest first, with the digests (SHA-256, hex) of their stored bytes."""

    entries: tuple[Entry, ...] = ()
    digests: tuple[str, ...] = ()

    @property
    def champion(self) -> Entry | None:
        """The entry that made the champion, or None before the first promotion."""
        return next((entry for entry in reversed(self.entries) if entry.changes_champion), None)

    @property
    def champion_before(self) -> str | None:
        """The release that was the champion before the present one, or None if there was none."""
        champions = [entry.version for entry in self.entries if entry.changes_champion]
        return next((version for version in reversed(champions) if version != champions[-1]), None)

    @property
    def withdrawn(self) -> dict[str, Entry]:
        """By version of each withdrawn release, the entry that withdrew it."""
        found: dict[str, Entry] = {}
        champion: str | None = None
        for entry in self.entries:
            if entry.action == "withdraw":
                found[entry.version] = entry
            elif entry.action == "restore":
                found.pop(entry.version, None)
            else:
                if entry.action == "rollback" and champion not in {None, entry.version}:
                    found[str(champion)] = entry
                found.pop(entry.version, None)
                champion = entry.version
        return found

    @property
    def newest_key(self) -> str | None:
        """The id of the key that signed last; None if nothing is signed."""
        return next((entry.signed_by for entry in reversed(self.entries) if entry.signed_by), None)

    def find_manifest(self, version: str) -> Entry | None:
        """The newest entry that says which manifest the release has."""
        entries = reversed(self.entries)
        return next((entry for entry in entries if entry.version == version and entry.manifest_sha256), None)

    def has_been_champion(self, version: str) -> bool:
        """Whether the release is or was the champion."""
        return any(entry.changes_champion and entry.version == version for entry in self.entries)

    def origin_of(self, version: str) -> Origin:
        """What the log knows of the origin of a release."""
        for entry in self.entries:
            if entry.action == "promote" and entry.version == version and entry.model_sha256:
                return Origin(entry.model_sha256, entry.inputs)
        return Origin()

    def find_withdrawal(self, candidate: Origin) -> tuple[str, Entry] | None:
        """The withdrawn release that the candidate repeats, and the entry that withdrew it; None if there is none.

        It repeats one if the models are the same, bit for bit, or were trained by the same code, with the same
        parameters, on the same data. If only the version is known, its end, which is that of the digest, decides.
        """
        for version, entry in self.withdrawn.items():
            digest = entry.model_sha256 or version.rpartition("-")[2]
            same_model = candidate.model_sha256 is not None and candidate.model_sha256.startswith(digest)
            if same_model or (candidate.inputs is not None and candidate.inputs == entry.inputs):
                return version, entry
        return None


def read_log(store: Store, known: Log = Log()) -> Log:
    """All entries; what is known of them is not read again.

    Raises :class:`IntegrityError` for an entry that is missing, changed, or not signed as the store's keys demand.
    """
    after = len(known.entries)
    keys = [stat.key for stat in _list_entries(store, after)]
    entries, digests = list(known.entries), list(known.digests)
    for key, (entry, digest) in zip(keys, side_by_side(partial(_read, store), keys), strict=True):
        _check_link(key, entry, digests[-1] if digests else None)
        _check_signer(store.keys, key, entry, entries[-1] if entries else None)
        entries.append(entry)
        digests.append(digest)
    _check_sealed(store.keys, digests)
    return Log(tuple(entries), tuple(digests))


def history(store: Store) -> list[Entry]:
    """All entries, oldest first; raises like :func:`read_log`."""
    return list(read_log(store).entries)


def champion(store: Store) -> Entry | None:
    """The entry that made the champion, or None before the first promotion; raises like :func:`read_log`.

    Only the newest entries are read, back to that one, unless some of them need the whole log to be believed: those
    that are not signed by the newest of the trusted keys.
    """
    following: Entry | None = None
    for stat in reversed(_list_entries(store)):
        entry, digest = _read(store, stat.key)
        if store.keys.trusted and entry.signed_by != store.keys.trusted.keys[-1].id:
            return read_log(store).champion
        _check_signer(store.keys, stat.key, entry, None)
        if following:
            _check_link(_key(following.sequence), following, digest)
            _check_signer(store.keys, _key(following.sequence), following, entry)
        if entry.changes_champion:
            return entry
        following = entry
    return None


def champion_at(store: Store, moment: datetime) -> Entry | None:
    """The entry that made the release which was the champion at that moment, or None if there was none yet.

    An entry cannot be later than one that follows it, nor than the store says that it was written: a clock that was
    ahead when an entry was written is put right by both.
    """
    latest, entries = datetime.max.replace(tzinfo=UTC), read_log(store).entries
    written = {stat.key: stat.modified for stat in _list_entries(store)}
    for entry in reversed(entries):
        latest = min(latest, datetime.fromisoformat(entry.time), written[_key(entry.sequence)])
        if entry.changes_champion and latest <= moment:
            return entry
    return None


def append(
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
    """Write the next entry, provided that what it decides still makes sense.

    A promotion or a rollback names the entry that made the champion which it replaces, `after` (0: none). `origin` is
    that of the release which is promoted or withdrawn, and `manifest_sha256` is of the manifest of the named one.
    Returns the entry; if this writer's is in the log already, that one, and nothing is written: its response was lost,
    or the writer comes again.

    Raises :class:`ConflictError` if the champion is another one by now, :class:`RejectedError` if the candidate
    repeats a withdrawn release, or if there is nothing to withdraw or to restore, and :class:`SettingsError` if this
    process cannot sign the entry.
    """
    origin, log = origin or Origin(), Log()
    for _ in range(_ATTEMPTS):
        log = read_log(store, log)
        for entry in log.entries:
            if (entry.write_id, entry.action, entry.version) == (write_id, action, version):
                _leave_receipt(store, log.entries[-1].sequence)
                return entry
        current = log.champion
        if action in _CHANGES:
            _require_champion(log, version, action, after or 0)
        if action == "promote" and (repeated := log.find_withdrawal(origin)):
            raise RejectedError(describe_withdrawal(version, *repeated))
        if action in {"withdraw", "restore"}:
            _require_state(log, version, action)
        require_signing(store.keys, log)
        new = Entry(
            sequence=len(log.entries) + 1,
            version=version,
            action=action,
            reason=make_printable(reason),
            write_id=write_id,
            time=read_clock(store).isoformat(timespec="seconds"),
            actor=make_printable(actor),
            replaces=current.version if current and action in _CHANGES else None,
            model_sha256=origin.model_sha256,
            inputs=origin.inputs,
            manifest_sha256=manifest_sha256,
            previous_sha256=log.digests[-1] if log.digests else None,
        )
        key = _key(new.sequence)
        if store.put_if_absent(key, store.keys.encode(key, "champion-entry", new.as_document())):
            _leave_receipt(store, new.sequence)
            return replace(new, signed_by=store.keys.signing_id)
    raise StoreError(f"cannot add {version} to the champion log: {_ATTEMPTS} other writers came first; try again")


def require_signing(keys: Keys, log: Log) -> None:
    """Raise :class:`SettingsError` if this process cannot add an entry that the readers of the log would accept."""
    if log.newest_key is None and keys.trusted is None:
        return
    signing = compute_key_id(keys.require_signing_key().public_key())
    if not keys.may_sign(signing, len(log.entries) + 1, log.newest_key):
        raise SettingsError(
            f"FMNIST_SIGNING_KEY is key {signing[:16]}, which was replaced and may not sign entry "
            f"{len(log.entries) + 1} of the champion log; give this process the newest key. Nothing was changed"
        )


def describe_withdrawal(candidate: str, version: str, entry: Entry) -> str:
    """Why a candidate that repeats a withdrawn release is not promoted, and what to do."""
    who = f" by {entry.actor}" if entry.actor else ""
    like = (
        f"is release {version}"
        if candidate == version
        else f"is the model of release {version}, or comes from the same data, code and parameters"
    )
    return (
        f"{candidate} {like}, and that release was withdrawn{who} on {entry.time[:10]}: {entry.reason}. "
        f"Withdraw the batch that caused it, or lift the withdrawal (fmnist restore {version} --reason …)"
    )


def _require_champion(log: Log, version: str, action: Action, after: int) -> None:
    current = log.champion
    if (current.sequence if current else 0) == after:
        return
    known = next((entry.version for entry in log.entries if entry.sequence == after), "none")
    now = f"and is {current.version} by entry {current.sequence} of the log" if current else "and there is none now"
    what_next = (
        f"{version} is not promoted. Clear evaluate_tuned and what follows to compare it with the new champion"
        if action == "promote"
        else f"nothing was rolled back. Look at the new champion, and roll back again if {version} is still wanted"
    )
    raise ConflictError(f"the champion has changed since: it was {known}, {now}; {what_next}")


def _require_state(log: Log, version: str, action: Action) -> None:
    current, withdrawn = log.champion, log.withdrawn
    if action == "restore" and version not in withdrawn:
        raise RejectedError(f"release {version} is not withdrawn; `fmnist history` lists what was")
    if action == "withdraw" and version in withdrawn:
        raise RejectedError(f"release {version} was withdrawn already: {withdrawn[version].reason}")
    if action == "withdraw" and current and current.version == version:
        raise RejectedError(f"{version} is the champion: roll back to another release, which withdraws it")


def _list_entries(store: Store, after: int = 0) -> list[Stat]:
    """The objects of all entries after a number; raises :class:`IntegrityError` if one before the newest is missing.

    What others put beside them does not count. Receipts are listed first: an entry that is written in between has been
    listed then.
    """
    receipts = [one for one in store.list(_RECEIPTS, after=_receipt_key(after)) if _RECEIPT.fullmatch(one.key)]
    stats = [one for one in store.list(_ENTRIES, after=_key(after)) if _ENTRY.fullmatch(one.key)]
    for expected, stat in enumerate(stats, after + 1):
        if stat.key != _key(expected):
            raise IntegrityError(
                f"{stat.key}: the champion log has no entry {expected} before it; recover it from a backup or an "
                "earlier version of the object"
            )
    newest = after + len(stats)
    if receipts and receipts[-1].key > _receipt_key(newest):
        lost = receipts[-1].key
        raise IntegrityError(
            f"{_key(newest + 1)} is missing, although {lost} says that it was written: it was lost or deleted. Recover "
            f"it from a backup. If that is impossible and you accept the loss, delete {_RECEIPTS}* from there on, as "
            "the store's administrator"
        )
    return stats


def _leave_receipt(store: Store, sequence: int) -> None:
    """Note that the entry was written; an error is only logged, since the entry counts without it as well."""
    try:
        store.put(_receipt_key(sequence), f"{_key(sequence)} was written.\n".encode())
    except FmnistError as error:
        logger.error("entry %d is in the champion log, but its receipt cannot be written: %s", sequence, error)


def _receipt_key(sequence: int) -> str:
    return f"{_RECEIPTS}{sequence:08d}.txt"


def _key(sequence: int) -> str:
    return f"{_ENTRIES}{sequence:08d}.json"


def _read(store: Store, key: str) -> tuple[Entry, str]:
    """An entry, and the digest of its stored bytes."""
    document = store.keys.decode(key, "champion-entry", store.get(key, _MAX_ENTRY_BYTES))
    try:
        entry = Entry(**document.content, signed_by=document.signed_by)
    except (ValidationError, TypeError) as error:
        faults = error.errors() if isinstance(error, ValidationError) else []
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults) or str(error)
        if any(one["type"] == "unexpected_keyword_argument" for one in faults):
            raise IntegrityError(
                f"{key}: was written by a newer version of this project ({wrong}); install that"
            ) from error
        raise IntegrityError(f"{key}: is not an entry of the champion log ({wrong}); it is not used") from error
    if _key(entry.sequence) != key:
        raise IntegrityError(
            f"{key}: holds entry {entry.sequence} of the champion log, so it was copied or renamed; recover the "
            "original from a backup or an earlier version of the object"
        )
    return entry, document.sha256


def _check_signer(keys: Keys, key: str, entry: Entry, previous: Entry | None) -> None:
    """Raise :class:`IntegrityError` if the entry is unsigned where it must not be, or signed by a replaced key.

    The previous entry is None if this is the first one.
    """
    earlier = previous.signed_by if previous else None
    if entry.signed_by is None:
        unsigned = keys.trusted.unsigned_count if keys.trusted else 0 if earlier else entry.sequence
        if entry.sequence > unsigned:
            raise IntegrityError(
                f"{key}: is unsigned, but entries after number {min(unsigned, entry.sequence - 1)} must be signed. "
                "Either a process without the signing key wrote it, or it is forged. As the store's administrator, "
                "delete it and its receipt in champion-receipts/ (docs/signing.md)"
            )
    elif not keys.may_sign(entry.signed_by, entry.sequence, earlier):
        raise IntegrityError(
            f"{key}: is signed by key {entry.signed_by[:16]}, which had been replaced or revoked by then, so it may be "
            "forged. As the store's administrator, delete it and its receipt in champion-receipts/ (docs/signing.md)"
        )


def _check_link(key: str, entry: Entry, digest: str | None) -> None:
    """Raise :class:`IntegrityError` unless the previous entry, by its digest, is the one that this one follows.

    Unsigned entries of earlier versions do not say.
    """
    if entry.previous_sha256 != digest and (entry.previous_sha256 or entry.signed_by):
        raise IntegrityError(
            f"{key}: does not follow {_key(entry.sequence - 1)} as that is now, so one of the two was replaced; "
            "recover the original from a backup or an earlier version of the object"
        )


def _check_sealed(keys: Keys, digests: Sequence[str]) -> None:
    """Raise :class:`IntegrityError` unless the entries are there that were when signing began, or a key was revoked."""
    for sealed in keys.trusted.sealed if keys.trusted else ():
        if digest_entries(digests[: sealed.count]) != sealed.sha256:
            raise IntegrityError(
                f"{_key(1)} to {_key(sealed.count)}: are not the entries that were there when signing began or a key "
                "was revoked (trusted keys); recover the originals from a backup or earlier versions of the objects"
            )
