"""A small store with a signed history, and manipulations by an attacker who has the publisher's rights but no key."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import compute_reference
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.signing import Keys, Kind
from fmnist_tasks.registry.signing_keys import make_keys, parse_signing_key
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.schemas.runs import PromotionResult
from tests.support.documents import make_facts, save_record


@dataclass(frozen=True)
class Manipulation:
    """A manipulation by an attacker, and the object that the error message names."""

    fault: str  # key of the first wrong object, with which the message starts
    apply: Callable[[Store], None]


def make_signing_keys(
    earlier: Keys | None = None,
    digests: tuple[str, ...] = (),
    manifests: dict[str, str] | None = None,
    *,
    revoke_earlier: bool = False,
) -> Keys:
    """Return new keys, or the earlier keys with a new one."""
    pem, trusted = make_keys(earlier.trusted if earlier else None, digests, manifests, revoke_earlier=revoke_earlier)
    return Keys(trusted, parse_signing_key(pem))


def publish(store: Store, version: str, model: bytes = b"") -> None:
    facts = make_facts(version, classes=["Shirt", "Dress"], ood_threshold=1.5, run_id=version)
    releases.publish_release(store, version, {"model.h5": model or version.encode(), "model_card.md": b"card"}, facts)


def promote(store: Store, version: str) -> Entry:
    log = champion.read_log(store)
    entry = champion.append_entry(
        store,
        version=version,
        action="promote",
        reason="passed",
        write_id=f"{version}-{len(log.entries)}",
        actor="schedule",
        after=log.champion.sequence if log.champion else 0,
        manifest_sha256=releases.open_manifest(store, version, log).sha256,
    )
    result = PromotionResult(version=version, sequence=entry.sequence, accuracy=0.95, is_current=True, summary="")
    save_record(store, version, "promote", result=result.to_json())
    return entry


def make_history(store: Store) -> None:
    """Write four releases and five log entries: three promotions, a withdrawal of v4, and a rollback to v2."""
    for version in ("v1", "v2", "v3", "v4"):
        publish(store, version)
    for version in ("v1", "v2", "v3"):
        promote(store, version)
    digest = releases.open_manifest(store, "v4").sha256
    champion.append_entry(
        store, version="v4", action="withdraw", reason="bad", write_id="w", actor="ann", manifest_sha256=digest
    )
    digest = releases.open_manifest(store, "v2").sha256
    champion.append_entry(
        store, version="v2", action="rollback", reason="bad", write_id="r", actor="ann", after=3, manifest_sha256=digest
    )


def entry_key(number: int) -> str:
    return f"champion/{number:08d}.json"


def manifest_key(version: str) -> str:
    return f"releases/{version}/manifest.json"


def read_champion(store: Store) -> tuple[str, Any, dict[str, bytes]] | None:
    """Return what a reader uses: version, manifest and files of the champion."""
    entry = champion.find_champion(store)
    if entry is None:
        return None
    manifest = releases.read_manifest(store, entry.version)
    return entry.version, manifest, releases.read_files(store, manifest)


def _read(store: Store, key: str, kind: Kind) -> dict[str, Any]:
    return store.keys.decode(key, kind, store.get(key)).content


def _change_payload(store: Store, key: str, old: str, new: str) -> None:
    """Change a payload without its signature."""
    envelope = json.loads(store.get(key))
    payload = base64.b64decode(envelope["payload"])
    assert old.encode() in payload
    envelope["payload"] = base64.b64encode(payload.replace(old.encode(), new.encode())).decode()
    store.put(key, json.dumps(envelope).encode())


def _forge_manifest(store: Store, version: str, keys: Keys, **changes: Any) -> None:
    key = manifest_key(version)
    content = _read(store, key if store.stat(key) else manifest_key("v1"), "manifest")
    store.put(key, keys.encode(key, "manifest", {**content, "version": version, **changes}))


def _forge_entry(store: Store, number: int, keys: Keys, **changes: Any) -> None:
    key = entry_key(number)
    content = _read(store, entry_key(min(number, 5)), "champion-entry")
    store.put(key, keys.encode(key, "champion-entry", {**content, "sequence": number, **changes}))


def _replace_model(store: Store, keys: Keys) -> None:
    key, model = "releases/v2/model.h5", b"another model"
    store.put(key, model)
    files = _read(store, manifest_key("v2"), "manifest")["files"]
    _forge_manifest(
        store, "v2", keys, files={**files, "model.h5": compute_reference(key, model).to_json()}, model_sha256="0" * 64
    )


def _swap(store: Store, first_key: str, second_key: str) -> None:
    first, second = store.get(first_key), store.get(second_key)
    store.put(first_key, second)
    store.put(second_key, first)


def _copy_release(store: Store) -> None:
    for stat in list(store.list("releases/v1/")):
        store.put(stat.key.replace("/v1/", "/v9/"), store.get(stat.key))


def _strip_signatures(store: Store) -> None:
    for version in ("v1", "v2", "v3", "v4"):
        _forge_manifest(store, version, UNSIGNED)
    for number in range(1, 6):
        content = _read(store, entry_key(number), "champion-entry")
        store.put(entry_key(number), seal({**content, "manifest_sha256": None, "previous_sha256": None}))


def _replay(store: Store, other_store: Store, *prefixes: str) -> None:
    for prefix in prefixes:
        for stat in list(other_store.list(prefix)):
            store.put(stat.key, other_store.get(stat.key))


def _delete(store: Store, keys: Iterable[str]) -> None:
    for key in keys:
        store.delete(key)


UNSIGNED = Keys()


def list_manipulations(other_store: Store) -> dict[str, Manipulation]:
    """Return manipulations by name.

    `other_store` is another store with a longer history, signed with the same key.
    """
    foreign_keys = make_signing_keys()  # of the attacker
    model, receipt = "releases/v2/model.h5", "champion-receipts/0000000{}.txt".format
    v1, v2, v3 = (manifest_key(version) for version in ("v1", "v2", "v3"))
    entries = [entry_key(number) for number in range(7)]

    def change(key: str, old: str, new: str) -> Manipulation:
        return Manipulation(key, lambda store: _change_payload(store, key, old, new))

    def forge_manifest(version: str, keys: Keys, **changes: Any) -> Manipulation:
        return Manipulation(manifest_key(version), lambda store: _forge_manifest(store, version, keys, **changes))

    def forge_entry(number: int, keys: Keys, **changes: Any) -> Manipulation:
        return Manipulation(entry_key(number), lambda store: _forge_entry(store, number, keys, **changes))

    def copy_object(source: str, target: str) -> Manipulation:
        return Manipulation(target, lambda store: store.put(target, store.get(source)))

    def delete(fault: str, *keys: str) -> Manipulation:
        return Manipulation(fault, lambda store: _delete(store, keys))

    def replay(fault: str, *prefixes: str) -> Manipulation:
        return Manipulation(fault, lambda store: _replay(store, other_store, *prefixes))

    return {
        "classes changed, signature kept": change(v2, "Dress", "Shoes"),
        "threshold changed, signature kept": change(v2, "1.5", "9.9"),
        "threshold changed, unsigned": forge_manifest("v2", UNSIGNED, ood_threshold=1e9),
        "manifest unsigned": forge_manifest("v2", UNSIGNED),
        "classes changed, signed with another key": forge_manifest("v2", foreign_keys, classes=["Dress", "Shirt"]),
        "manifest of a former champion changed": forge_manifest("v1", UNSIGNED, classes=["a", "b"]),
        "manifest of another release": copy_object(v3, v2),
        "manifest of another store": replay(v1, "releases/v1/"),
        "model replaced": Manipulation(model, lambda store: store.put(model, b"another")),
        "model and manifest replaced, unsigned": Manipulation(v2, lambda store: _replace_model(store, UNSIGNED)),
        "model and manifest replaced, other key": Manipulation(v2, lambda store: _replace_model(store, foreign_keys)),
        "release copied under another name": Manipulation(manifest_key("v9"), _copy_release),
        "release added, unsigned": forge_manifest("v8", UNSIGNED),
        "release added, signed with another key": forge_manifest("v8", foreign_keys),
        "first entry rewritten": forge_entry(1, UNSIGNED, reason="changed"),
        "reason of an entry changed, signature kept": change(entries[3], "passed", "failed"),
        "newest entry rewritten, unsigned": forge_entry(5, UNSIGNED, version="v3"),
        "newest entry rewritten, signed with another key": forge_entry(5, foreign_keys, version="v3"),
        "entry appended, unsigned": forge_entry(6, UNSIGNED, version="v4", action="promote"),
        "entry appended, signed with another key": forge_entry(6, foreign_keys, version="v4"),
        "entry copied to the end": copy_object(entries[1], entries[6]),
        "entry of another store appended": replay(entries[6], entries[6]),
        "manifest in place of an entry": copy_object(v3, entries[6]),
        "entries in another order": Manipulation(entries[2], lambda store: _swap(store, entries[2], entries[3])),
        "whole store replaced by another": replay(entries[1], "champion/", "champion-receipts/", "releases/"),
        "all signatures removed": Manipulation(entries[1], _strip_signatures),
        "entry deleted": delete(entries[3], entries[2]),
        "newest entry deleted": delete(entries[5], entries[5]),
        "release of the champion deleted": delete(v2, v2, model),
        "newest entries deleted with their receipts": delete(
            "runs/v3/promote.json", *entries[3:6], *map(receipt, (3, 4, 5))
        ),
        "all entries deleted with their receipts": delete(
            "runs/v1/promote.json", *entries[1:6], *map(receipt, range(1, 6))
        ),
    }


def replace_keys(store: Store, keys: Keys) -> Store:
    """Return the same store, as a process with other keys opens it."""
    reopened = copy.copy(store)
    reopened.keys = keys
    return reopened
