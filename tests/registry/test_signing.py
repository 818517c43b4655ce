"""Signatures of manifests and log entries: manipulations are detected, and keys can be replaced."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fmnist_tasks.errors import AccessError, FmnistError, IntegrityError, SettingsError
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.audit import audit_store
from fmnist_tasks.registry.blobs import put_blob
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.signing import Keys, SealedEntries, digest_entries
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.schemas.runs import PromotionResult
from tests.support.documents import make_dataset, make_facts, make_record, save_record
from tests.support.minio_server import MinioServer
from tests.support.signed_store import (
    entry_key,
    list_manipulations,
    make_history,
    make_signing_keys,
    manifest_key,
    promote,
    publish,
    read_champion,
    replace_keys,
)

MANIPULATIONS = list_manipulations(FolderStore(Path("unused")))
DETECTED_BY_AUDIT_ONLY = {"newest entries deleted with their receipts", "all entries deleted with their receipts"}


@pytest.fixture(scope="session")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A store with a signed history, and a second store with a longer history and the same signing key."""
    root, keys = tmp_path_factory.mktemp("histories"), make_signing_keys()
    assert keys.trusted
    stores = (
        FolderStore(root / "store", keys),
        FolderStore(root / "other", Keys(keys.trusted.model_copy(update={"store": "0" * 32}), keys.signing)),
    )
    for store in stores:
        make_history(store)
    publish(stores[1], "v5")
    promote(stores[1], "v5")
    return stores


@pytest.fixture
def signed_store(histories: tuple[FolderStore, FolderStore], tmp_path: Path) -> FolderStore:
    shutil.copytree(histories[0].root, tmp_path / "signed")
    return FolderStore(tmp_path / "signed", histories[0].keys)


@pytest.mark.parametrize("name", MANIPULATIONS)
def test_every_manipulation_is_detected(
    name: str, signed_store: FolderStore, histories: tuple[FolderStore, FolderStore]
) -> None:
    manipulation = list_manipulations(histories[1])[name]
    original, head = read_champion(signed_store), audit_store(signed_store)["head"]
    reader = replace_keys(signed_store, Keys(signed_store.keys.trusted))
    manipulation.apply(signed_store)
    with pytest.raises(FmnistError) as error:
        audit_store(reader)
    assert str(error.value).startswith((manipulation.fault, signed_store.location(manipulation.fault)))
    with pytest.raises(FmnistError):
        audit_store(reader, head)
    if name not in DETECTED_BY_AUDIT_ONLY:
        try:
            current = read_champion(reader)
        except FmnistError:
            return
        assert current == original


def test_without_keys_everything_is_reported_as_unsigned(store: FolderStore) -> None:
    make_history(store)
    assert [store.keys.describe(entry.signed_by) for entry in champion.list_entries(store)] == ["unsigned"] * 5
    summary = audit_store(store)
    assert (summary["entries"], summary["signed_entries"], summary["signed_releases"]) == (5, 0, 0)
    assert summary["signatures"] == "not verified: FMNIST_TRUSTED_KEYS is not set"


def test_without_keys_accidental_changes_are_still_detected(store: FolderStore) -> None:
    make_history(store)
    content = releases.read_manifest(store, "v1").to_json()
    store.put(manifest_key("v1"), store.keys.encode("", "manifest", {**content, "classes": ["a", "b"]}))
    with pytest.raises(IntegrityError, match=r"releases/v1/manifest.json is not the manifest that entry 1 .* names"):
        audit_store(store)
    store.put(
        entry_key(2),
        store.keys.encode("", "champion-entry", champion.list_entries(store)[1].to_json() | {"reason": "x"}),
    )
    message = (
        "champion/00000003.json names a predecessor other than champion/00000002.json, so one of the two was "
        "replaced; restore the original from a backup or an earlier version of the object"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        champion.read_log(store)


def test_the_entry_returned_by_its_writer_names_the_key_too(signed_store: FolderStore) -> None:
    publish(signed_store, "v5")
    assert promote(signed_store, "v5") == champion.list_entries(signed_store)[-1]


def test_an_entry_names_its_manifest_its_predecessor_and_who_acted(signed_store: FolderStore) -> None:
    log = champion.read_log(signed_store)
    for number, entry in enumerate(log.entries):
        stored = signed_store.get(manifest_key(entry.version))
        assert entry.manifest_sha256 == hashlib.sha256(stored).hexdigest()
        previous = signed_store.get(entry_key(number)) if number else None
        assert entry.previous_sha256 == (previous and hashlib.sha256(previous).hexdigest())
    assert {entry.actor for entry in log.entries} == {"schedule", "ann"}


def test_a_public_tool_verifies_a_signature(signed_store: FolderStore, tmp_path: Path) -> None:
    """OpenSSL and the specification of DSSE are enough."""
    assert signed_store.keys.trusted
    (tmp_path / "key.pem").write_text(signed_store.keys.trusted.keys[0].public_key)
    envelope = json.loads(signed_store.get(manifest_key("v2")))
    payload, payload_type = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (signature,) = envelope["signatures"]
    signed = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
    (tmp_path / "payload").write_bytes(signed)
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "payload"]
    result = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Signature Verified Successfully" in result.stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "key.pem", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert signature["keyid"] == hashlib.sha256(der.stdout).hexdigest()


def test_signing_can_be_turned_on_for_an_existing_store(store: FolderStore) -> None:
    make_history(store)
    store.keys = make_signing_keys(None, champion.read_log(store).digests)
    publish(store, "v5")
    promote(store, "v5")
    signatures = [store.keys.describe(entry.signed_by) for entry in champion.list_entries(store)]
    assert signatures[:5] == ["unsigned"] * 5
    assert signatures[5].startswith("signed by key ")
    summary = audit_store(store)
    assert (summary["entries"], summary["signed_entries"], summary["signed_releases"]) == (6, 1, 1)
    # A rollback to a release from before signing began stays possible.
    assert releases.read_manifest(store, "v1").version == "v1"


def put_unlinked_entry(store: Store, number: int, version: str) -> None:
    """Write a promotion that names neither its manifest nor its predecessor, so a change of these goes undetected."""
    time = "2026-11-02T02:00:00+00:00"
    entry = Entry(
        sequence=number, version=version, action="promote", reason="why", write_id="w", time=time, actor="schedule"
    )
    store.put(entry_key(number), store.keys.encode("", "champion-entry", entry.to_json()))


def test_unsigned_entries_cannot_be_changed_after_signing_began(store: FolderStore) -> None:
    for number in (1, 2):
        put_unlinked_entry(store, number, f"v{number}")
    digests = champion.read_log(store).digests
    put_unlinked_entry(store, 1, "v2")
    champion.read_log(store)  # not detected yet
    store.keys = make_signing_keys(None, digests)
    message = (
        "champion/00000001.json to champion/00000002.json: differ from the entries that existed when signing began or "
        r"a key was revoked \(trusted keys\); restore the originals from a backup or earlier versions of the objects"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        champion.read_log(store)


def require_refusal(store: Store, message: str) -> None:
    """Assert that neither the log nor the champion alone can be read."""
    for read in (champion.read_log, champion.find_champion):
        with pytest.raises(IntegrityError, match=message):
            read(store)


def test_an_unsigned_entry_after_a_signed_one_is_refused_with_and_without_keys(signed_store: FolderStore) -> None:
    content = champion.list_entries(signed_store)[3].to_json()  # a withdrawal: the champion is an entry before it
    forged = {**content, "sequence": 6, "previous_sha256": champion.read_log(signed_store).digests[-1]}
    signed_store.put(entry_key(6), Keys().encode("", "champion-entry", forged))
    for keys, number in ((signed_store.keys, 0), (Keys(), 5)):
        reader = replace_keys(signed_store, keys)
        message = (
            rf"champion/00000006.json is unsigned, but entries after number {number} must be signed\. Either a "
            r"process without the signing key wrote it, or it is forged\. As the store's administrator, delete it and "
            r"its receipt below champion-receipts/ \(docs/signing\.md\)"
        )
        require_refusal(reader, rf"^{message}$")


def test_the_champion_is_not_found_behind_an_entry_that_names_another_predecessor(signed_store: FolderStore) -> None:
    content = champion.list_entries(signed_store)[3].to_json() | {"sequence": 6, "previous_sha256": "0" * 64}
    signed_store.put(entry_key(6), signed_store.keys.encode(entry_key(6), "champion-entry", content))
    with pytest.raises(
        IntegrityError, match=r"^champion/00000006.json names a predecessor other than champion/0000000"
    ):
        champion.find_champion(signed_store)


def test_the_champion_is_not_an_entry_of_a_revoked_key(signed_store: FolderStore) -> None:
    """Trusted keys whose newest key is revoked, from before its last entry."""
    trusted, digests = signed_store.keys.trusted, champion.read_log(signed_store).digests
    assert trusted
    revoked = trusted.keys[0].model_copy(
        update={"revoked_after": SealedEntries(count=4, sha256=digest_entries(digests[:4]))}
    )
    reader = replace_keys(signed_store, Keys(trusted.model_copy(update={"keys": (revoked,)})))
    message = (
        rf"champion/00000005.json is signed by key {revoked.id[:16]}, which had been replaced or revoked by then, so "
        r"it may be forged\. As the store's administrator, delete it and its receipt below champion-receipts/ "
        r"\(docs/signing\.md\)"
    )
    require_refusal(reader, rf"^{message}$")


def test_a_manifest_from_before_signing_cannot_be_changed(store: FolderStore) -> None:
    """No log entry has its digest, and a forger can replace its seal too."""
    publish(store, "v1")
    put_unlinked_entry(store, 1, "v1")
    log = champion.read_log(store)
    store.keys = make_signing_keys(None, log.digests, {"v1": releases.open_manifest(store, "v1", log).sha256})
    manifest = releases.read_manifest(store, "v1").to_json()
    store.put(manifest_key("v1"), Keys().encode("", "manifest", {**manifest, "ood_threshold": 1e9}))
    message = (
        r"releases/v1/manifest.json is unsigned, and not one of the manifests that existed when signing began "
        r"\(trusted keys\), so nothing shows that this project published it; it is not used\. Restore it from a "
        "backup, or delete the release"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        releases.read_manifest(store, "v1")


def test_an_unsigned_release_that_is_not_trusted_is_refused(store: FolderStore) -> None:
    make_history(store)
    publish(store, "v7")
    store.keys = make_signing_keys(None, champion.read_log(store).digests)
    with pytest.raises(
        IntegrityError, match=r"releases/v7/manifest.json is unsigned, and not one of the manifests that existed when"
    ):
        releases.read_manifest(store, "v7")


def test_entries_verify_with_the_key_of_their_time(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signing_keys(first, champion.read_log(signed_store).digests)
    signed_store.keys = second
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    assert audit_store(signed_store)["signed_entries"] == 6
    keys = [entry.signed_by for entry in champion.list_entries(signed_store)]
    assert keys == [first.signing_id] * 5 + [second.signing_id]

    outdated = replace_keys(signed_store, Keys(second.trusted, first.signing))  # a process that still has the old key
    message = (
        rf"FMNIST_SIGNING_KEY is key {str(first.signing_id)[:16]}, which was replaced and may not sign entry 7 of the "
        "champion log, so nothing was changed; give this process the newest key"
    )
    with pytest.raises(SettingsError, match=rf"^{message}$"):
        champion.append_entry(outdated, version="v4", action="restore", reason="r", write_id="w")
    content = champion.list_entries(signed_store)[4].to_json() | {
        "previous_sha256": champion.read_log(outdated).digests[-1]
    }
    forged = outdated.keys.encode(entry_key(7), "champion-entry", {**content, "sequence": 7})
    signed_store.put(entry_key(7), forged)
    require_refusal(signed_store, r"00000007.json is signed by key .* replaced or revoked by then")


def test_a_release_signed_with_a_replaced_key_is_valid_only_if_the_log_names_it(signed_store: FolderStore) -> None:
    first = signed_store.keys
    publish(signed_store, "v5")
    publish(signed_store, "v6")
    promote(signed_store, "v5")
    signed_store.keys = make_signing_keys(first, champion.read_log(signed_store).digests)
    promote(signed_store, "v6")  # published before the rotation, promoted after it
    assert releases.read_manifest(signed_store, "v5")
    key = manifest_key("v7")
    forged = {**releases.read_manifest(signed_store, "v5").to_json(), "version": "v7"}
    signed_store.put(key, first.encode(key, "manifest", forged))
    message = (
        rf"releases/v7/manifest.json is signed by key {str(first.signing_id)[:16]}, which was replaced, and no entry "
        r"of the champion log names it; it is not used\. Delete the release \(docs/signing\.md, Replace a key\)"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        releases.read_manifest(signed_store, "v7")


def test_a_revoked_key_cannot_sign_new_documents(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signing_keys(first, champion.read_log(signed_store).digests, revoke_earlier=True)
    forger = replace_keys(signed_store, first)
    publish(forger, "v5")
    with pytest.raises(IntegrityError, match=r"releases/v5/manifest.json is signed by key .*, which was replaced"):
        releases.read_manifest(replace_keys(signed_store, second), "v5")
    promote(forger, "v5")
    with pytest.raises(IntegrityError, match=r"champion/00000006.json is signed by key"):
        champion.read_log(replace_keys(signed_store, second))


def test_a_revoked_key_cannot_rewrite_earlier_entries(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signing_keys(first, champion.read_log(signed_store).digests, revoke_earlier=True)
    content = champion.list_entries(signed_store)[4].to_json()
    signed_store.put(entry_key(5), first.encode(entry_key(5), "champion-entry", {**content, "version": "v3"}))
    champion.read_log(signed_store)  # with the old keys, this is not detected
    require_refusal(
        replace_keys(signed_store, second), r"differ from the entries that existed when .* a key was revoked"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": "6"}, "sequence: Input should be a valid integer"),
        ({"sequence": 6.0}, "sequence: Input should be a valid integer"),
        ({"sequence": None}, "sequence: Input should be a valid integer"),
        ({"version": 1}, "version: Input should be a valid string"),
        ({"action": "crown"}, "action: Input should be 'promote', 'rollback', 'withdraw' or 'restore'"),
    ],
)
def test_an_entry_with_mistyped_fields_is_refused(store: FolderStore, changes: dict[str, object], message: str) -> None:
    make_history(store)
    content = champion.list_entries(store)[4].to_json()
    store.put(entry_key(6), Keys().encode("", "champion-entry", {**content, "sequence": 6, **changes}))
    with pytest.raises(
        IntegrityError, match=rf"^champion/00000006.json: {message}; it was probably edited by hand, and is not used"
    ):
        champion.read_log(store)


def test_a_too_large_entry_or_manifest_is_not_read(store: FolderStore) -> None:
    make_history(store)
    store.put(entry_key(6), b"{}," * 30_000)
    with pytest.raises(IntegrityError, match=r"00000006.json has 90,000 bytes, expected at most 65,536"):
        champion.find_champion(store)
    store.delete(entry_key(6))
    store.put(manifest_key("v1"), b"{}," * (2 << 20))
    with pytest.raises(IntegrityError, match=r"v1/manifest.json has 6,291,456 bytes, expected at most 4,194,304"):
        releases.read_manifest(store, "v1")


def test_objects_with_similar_keys_are_ignored(store: FolderStore) -> None:
    make_history(store)
    before = audit_store(store)
    for key in ("champion/٠٠٠٠٠٠٠٦.json", "releases/zz/x/manifest.json", "releases/manifest.json"):
        store.put(key, b"foreign")
    assert audit_store(store) == before


def make_promotion(version: str, sequence: int) -> dict[str, Any]:
    """Return the result of a promotion as JSON, for its record."""
    return PromotionResult(
        version=version, sequence=sequence, accuracy=0.95, is_current=True, summary="promoted"
    ).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": "5"}, "result: sequence: Input should be a valid integer; it is not used"),
        ({"sequence": {}}, "result: sequence: Input should be a valid integer; it is not used"),
        ({"version": None}, "result: version: Input should be a valid string; it is not used"),
        ({"champion": "v2"}, "result: champion: unknown; it is not used"),
        ({"sequence": -1}, "says that entry -1 of the champion log promoted v9, but that entry is missing"),
        ({"sequence": 0}, "says that entry 0 of the champion log promoted v9, but that entry is missing"),
        ({"sequence": 6}, "says that entry 6 of the champion log promoted v9, but that entry is missing"),
        ({"sequence": 5}, "says that entry 5 of the champion log promoted v9, but that entry is about v2"),
    ],
)
def test_an_invalid_record_of_a_promotion_is_reported_with_its_key(
    store: FolderStore, changes: dict[str, object], message: str
) -> None:
    make_history(store)
    save_record(store, "odd", "promote", result=make_promotion("v9", 5) | changes)
    with pytest.raises(IntegrityError, match=rf"^runs/odd/promote.json: {message}"):
        audit_store(store)


def test_a_record_without_the_result_of_a_promotion_is_reported_with_its_key(store: FolderStore) -> None:
    make_history(store)
    key = "runs/odd/promote.json"
    for result, message in (([], "result: Input should be a valid dictionary"), ("x", "result: "), ({}, "result: ")):
        content = make_record("odd", "promote").to_json() | {"result": result}
        store.put(key, store.keys.encode(key, "run-record", content))
        with pytest.raises(IntegrityError, match=rf"^{key}: {message}"):
            audit_store(store)


@pytest.mark.parametrize(
    "changes",
    [
        {"result": None},
        {"status": "running", "result": None},
        {"status": "failed", "result": {}},
        {"status": "rejected", "result": {"sequence": 99, "version": "v9"}},
    ],
)
def test_a_promotion_that_did_not_succeed_is_not_a_fault(store: FolderStore, changes: dict[str, object]) -> None:
    make_history(store)
    save_record(store, "odd", "promote", **changes)
    assert audit_store(store)["entries"] == 5


def test_an_unsigned_record_of_a_promotion_is_ignored(signed_store: FolderStore) -> None:
    promotion = make_promotion("v9", 99)
    save_record(replace_keys(signed_store, Keys()), "forged", "promote", result=promotion)
    assert audit_store(signed_store)["entries"] == 5
    save_record(signed_store, "signed", "promote", result=promotion)
    with pytest.raises(IntegrityError, match=r"^runs/signed/promote.json: says that entry 99"):
        audit_store(signed_store)


def test_a_process_without_a_signing_key_can_only_read(signed_store: FolderStore) -> None:
    for keys in (Keys(signed_store.keys.trusted), Keys()):
        reader = replace_keys(signed_store, keys)
        before = {stat.key: stat.version for stat in reader.list("") if stat.key != "clock.txt"}
        assert read_champion(reader) == read_champion(signed_store)
        with pytest.raises(
            SettingsError, match=r"this process has no signing key, so nothing was changed. Set FMNIST_"
        ):
            champion.append_entry(reader, version="v4", action="restore", reason="r", write_id="w")
        assert {stat.key: stat.version for stat in reader.list("") if stat.key != "clock.txt"} == before
    assert reader.keys.describe(champion.list_entries(reader)[0].signed_by) == "signed, not verified"


def test_a_reader_with_older_trusted_keys_fails_with_a_remedy(signed_store: FolderStore) -> None:
    older_keys = Keys(signed_store.keys.trusted)
    signed_store.keys = make_signing_keys(signed_store.keys, champion.read_log(signed_store).digests)
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    with pytest.raises(
        IntegrityError, match=r"not among the trusted keys.*give this process the newer trusted-keys.json"
    ):
        champion.find_champion(replace_keys(signed_store, older_keys))


def test_an_earlier_head_reveals_a_truncated_log(signed_store: FolderStore) -> None:
    head = audit_store(signed_store)["head"]
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    assert audit_store(signed_store, head)["entries"] == 6
    for wrong in ("5", "5:abc", "x", ""):
        with pytest.raises(SettingsError, match="is not the head of a champion log"):
            audit_store(signed_store, wrong)
    for number in ("4", "0", "7"):
        with pytest.raises(IntegrityError, match=rf"champion/: entry {number} is missing or differs from the one"):
            audit_store(signed_store, f"{number}:{head.partition(':')[2]}")


@pytest.mark.parametrize(
    "data",
    [
        b'{"payloadType": 1}',
        b'{"payloadType": "x", "payload": "*", "signatures": []}',
        b'{"payloadType": "x", "payload": "W10=", "signatures": [{"keyid": "k", "sig": "s"}]}',
        b'{"payloadType": "x", "payload": "e30=", "signatures": [{"keyid": "k", "sig": "s"}]}',
        b'{"payloadType": ' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_an_invalid_envelope_is_refused(data: bytes, trusted: bool) -> None:
    keys = make_signing_keys() if trusted else Keys()
    with pytest.raises(IntegrityError, match=r"^champion/00000001.json is "):
        keys.decode(entry_key(1), "champion-entry", data)


def test_pruning_keeps_the_blobs_of_a_signed_manifest(signed_store: FolderStore) -> None:
    blob = put_blob(signed_store, b"the batch")
    facts = make_facts("m", dataset=make_dataset(blob))
    releases.publish_release(signed_store, "v5", {"model.h5": b"m"}, facts)
    old = dict.fromkeys([*signed_store.root.rglob("*")], 0)
    for path in old:
        os.utime(path, (0, 0))
    later = datetime.now(UTC)
    plan = pruning.plan_pruning(signed_store, keep=1, older_than=timedelta(days=1), now=later)
    assert {group.name for group in plan.groups if group.kind == "release"} == {"v1", "v4"}
    assert blob.uri not in {group.name for group in plan.groups}
    assert not plan.skipped
    key = manifest_key("v5")
    data = signed_store.get(key)
    for damaged in (data.replace(b'"sig": "', b'"sig": "A'), data[:40] + data[41:], data[:40] + b"!" + data[41:]):
        signed_store.put(key, damaged)
        plan = pruning.plan_pruning(signed_store, keep=1, older_than=timedelta(days=1), now=later)
        assert blob.uri not in {group.name for group in plan.groups}
        assert list(plan.skipped) == [key]


@pytest.mark.integration
def test_every_manipulation_by_the_publisher_is_refused_or_detected(
    minio_server: MinioServer, minio_store: S3Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server refuses it, or readers detect it; no reader gets a forged byte."""
    keys = make_signing_keys()
    minio_store.keys = keys
    make_history(minio_store)
    other_store = FolderStore(
        tmp_path, Keys(keys.trusted and keys.trusted.model_copy(update={"store": "0" * 32}), keys.signing)
    )
    make_history(other_store)
    publish(other_store, "v5")
    promote(other_store, "v5")
    for name, value in minio_server.create_user("publisher", bucket).items():
        monkeypatch.setenv(name, value)
    publisher = minio_server.open_store(bucket)
    publisher.keys = Keys(keys.trusted)
    original = {stat.key: minio_store.get(stat.key) for stat in minio_store.list("")}
    original_champion, refused = read_champion(publisher), []
    for name, manipulation in list_manipulations(other_store).items():
        try:
            manipulation.apply(publisher)
        except AccessError:
            refused.append(name)
            assert audit_store(publisher)["entries"] == 5
        else:
            with pytest.raises(FmnistError) as error:
                audit_store(publisher)
            assert str(error.value).startswith((manipulation.fault, publisher.location(manipulation.fault))), name
            try:
                current = read_champion(publisher)
            except FmnistError:
                current = original_champion
            assert current == original_champion, name
        for stat in list(minio_store.list("")):
            if stat.key not in original:
                minio_store.delete(stat.key)
        for key, data in original.items():
            minio_store.put(key, data)
    deletions = {name for name in MANIPULATIONS if "deleted" in name}
    assert deletions <= set(refused)
