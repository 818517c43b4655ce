"""Signatures of manifests and log entries: what is detected, what is refused, and what changes when keys do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fmnist_tasks.errors import AccessError, FmnistError, IntegrityError, SettingsError
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.audit import audit
from fmnist_tasks.registry.blobs import put_blob
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import Store
from tests.support.minio_server import MinioServer
from tests.support.signed_store import (
    entry_key,
    list_manipulations,
    make_history,
    make_signer,
    manifest_key,
    promote,
    publish,
    read_champion,
    replace_keys,
)

MANIPULATIONS = list_manipulations(FolderStore(Path("unused")))
UNNOTICED_BY_READERS = {"newest entries deleted with their receipts", "all entries deleted with their receipts"}


@pytest.fixture(scope="session")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A store with a signed history, and another one with more entries and the same signing key."""
    root, keys = tmp_path_factory.mktemp("histories"), make_signer()
    assert keys.trusted
    stores = (
        FolderStore(root / "store", keys),
        FolderStore(root / "elsewhere", Keys(keys.trusted.model_copy(update={"store": "0" * 32}), keys.signing)),
    )
    for one in stores:
        make_history(one)
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
    honest, head = read_champion(signed_store), audit(signed_store)["head"]
    reader = replace_keys(signed_store, Keys(signed_store.keys.trusted))
    manipulation.act(signed_store)
    with pytest.raises(FmnistError) as caught:
        audit(reader)
    assert str(caught.value).startswith((manipulation.fault, signed_store.location(manipulation.fault)))
    with pytest.raises(FmnistError):
        audit(reader, head)
    if name not in UNNOTICED_BY_READERS:
        try:
            found = read_champion(reader)
        except FmnistError:
            return
        assert found == honest


def test_without_keys_everything_is_unsigned_and_says_so(store: FolderStore) -> None:
    make_history(store)
    assert [store.keys.describe(entry.signed_by) for entry in champion.history(store)] == ["unsigned"] * 5
    found = audit(store)
    assert (found["entries"], found["signed_entries"], found["signed_releases"]) == (5, 0, 0)
    assert found["signatures"] == "not verified: FMNIST_TRUSTED_KEYS is not set"


def test_without_keys_an_accident_is_noticed_all_the_same(store: FolderStore) -> None:
    make_history(store)
    content = releases.read_manifest(store, "v1")
    store.put(manifest_key("v1"), store.keys.encode("", "manifest", {**content, "classes": ["a", "b"]}))
    with pytest.raises(IntegrityError, match=r"releases/v1/manifest.json: is not the manifest that entry 1 .* names"):
        audit(store)
    store.put(
        entry_key(2),
        store.keys.encode("", "champion-entry", champion.history(store)[1].as_document() | {"reason": "x"}),
    )
    with pytest.raises(
        IntegrityError, match=r"champion/00000003.json: does not follow champion/00000002.json as that is"
    ):
        champion.read_log(store)


def test_an_entry_names_its_manifest_its_predecessor_and_who_acted(signed_store: FolderStore) -> None:
    log = champion.read_log(signed_store)
    for number, entry in enumerate(log.entries):
        stored = signed_store.get(manifest_key(entry.version))
        assert entry.manifest_sha256 == hashlib.sha256(stored).hexdigest()
        before = signed_store.get(entry_key(number)) if number else None
        assert entry.previous_sha256 == (before and hashlib.sha256(before).hexdigest())
    assert {entry.actor for entry in log.entries} == {"schedule", "ann"}


def test_a_public_tool_verifies_a_signature(signed_store: FolderStore, tmp_path: Path) -> None:
    """With nothing but the specification of DSSE and OpenSSL."""
    assert signed_store.keys.trusted
    (tmp_path / "key.pem").write_text(signed_store.keys.trusted.keys[0].public_key)
    envelope = json.loads(signed_store.get(manifest_key("v2")))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (signature,) = envelope["signatures"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (tmp_path / "payload").write_bytes(signed)
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "payload"]
    ended = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Signature Verified Successfully" in ended.stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "key.pem", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert signature["keyid"] == hashlib.sha256(der.stdout).hexdigest()


def test_signing_turned_on_for_an_existing_store(store: FolderStore) -> None:
    make_history(store)
    store.keys = make_signer(None, champion.read_log(store).digests)
    publish(store, "v5")
    promote(store, "v5")
    signatures = [store.keys.describe(entry.signed_by) for entry in champion.history(store)]
    assert signatures[:5] == ["unsigned"] * 5
    assert signatures[5].startswith("signed by key ")
    found = audit(store)
    assert (found["entries"], found["signed_entries"], found["signed_releases"]) == (6, 1, 1)
    # A release that was champion before it was signed can be rolled back to.
    assert releases.read_manifest(store, "v1")["version"] == "v1"


def test_the_unsigned_entries_stay_as_they_were(store: FolderStore) -> None:
    facts = {"reason": "why", "write_id": "w", "time": "2026-11-02T02:00:00+00:00"}
    for number in (1, 2):  # as an earlier version wrote them, without digests
        entry = {"sequence": number, "version": f"v{number}", "action": "promote", **facts}
        store.put(entry_key(number), store.keys.encode("", "champion-entry", entry))
    digests = champion.read_log(store).digests
    store.put(entry_key(1), store.keys.encode("", "champion-entry", {**entry, "sequence": 1}))
    champion.read_log(store)  # nothing tells
    store.keys = make_signer(None, digests)
    with pytest.raises(
        IntegrityError,
        match=r"00000001.json to champion/00000002.json: are not the entries that were there when signing began",
    ):
        champion.read_log(store)


def test_an_unsigned_entry_after_a_signed_one_is_refused_with_and_without_keys(signed_store: FolderStore) -> None:
    content = champion.history(signed_store)[0].as_document()
    forged = {**content, "sequence": 6, "previous_sha256": champion.read_log(signed_store).digests[-1]}
    signed_store.put(entry_key(6), Keys().encode("", "champion-entry", forged))
    for keys in (signed_store.keys, Keys()):
        reader = replace_keys(signed_store, keys)
        with pytest.raises(IntegrityError, match=r"champion/00000006.json: is unsigned, but entries after"):
            champion.read_log(reader)


def test_a_manifest_from_before_signing_stays_as_it_was(store: FolderStore) -> None:
    """Though an earlier version left no digest of it in the log, and whoever may write changes its seal as well."""
    publish(store, "v1")
    facts = {"reason": "why", "write_id": "w", "time": "2026-11-02T02:00:00+00:00"}
    entry = {"sequence": 1, "version": "v1", "action": "promote", **facts}
    store.put(entry_key(1), store.keys.encode("", "champion-entry", entry))
    log = champion.read_log(store)
    store.keys = make_signer(None, log.digests, {"v1": releases.open_manifest(store, "v1", log).sha256})
    manifest = releases.read_manifest(store, "v1")
    store.put(manifest_key("v1"), Keys().encode("", "manifest", {**manifest, "novelty_threshold": -1e9}))
    with pytest.raises(IntegrityError, match=r"releases/v1/manifest.json: is unsigned, and not as it was when signing"):
        releases.read_manifest(store, "v1")


def test_a_release_from_before_signing_that_is_not_among_the_trusted_is_refused(store: FolderStore) -> None:
    make_history(store)
    publish(store, "v7")
    store.keys = make_signer(None, champion.read_log(store).digests)
    with pytest.raises(
        IntegrityError, match=r"releases/v7/manifest.json: is unsigned, and not as it was when signing began"
    ):
        releases.read_manifest(store, "v7")


def test_entries_verify_with_the_key_of_their_time(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signer(first, champion.read_log(signed_store).digests)
    signed_store.keys = second
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    assert audit(signed_store)["signed_entries"] == 6
    keys = [entry.signed_by for entry in champion.history(signed_store)]
    assert keys == [first.signing_id] * 5 + [second.signing_id]

    late = replace_keys(signed_store, Keys(second.trusted, first.signing))  # a process that still has the old key
    with pytest.raises(
        SettingsError, match=r"FMNIST_SIGNING_KEY is key .*, which was replaced and may not sign entry 7"
    ):
        champion.append(late, version="v4", action="restore", reason="r", write_id="w")
    content = champion.history(signed_store)[4].as_document() | {"previous_sha256": champion.read_log(late).digests[-1]}
    forged = late.keys.encode(entry_key(7), "champion-entry", {**content, "sequence": 7})
    signed_store.put(entry_key(7), forged)
    for read in (champion.read_log, champion.champion):
        with pytest.raises(IntegrityError, match=r"00000007.json: is signed by key .* replaced or revoked by then"):
            read(signed_store)


def test_a_release_signed_with_a_replaced_key_counts_only_if_the_log_names_it(signed_store: FolderStore) -> None:
    first = signed_store.keys
    publish(signed_store, "v5")
    publish(signed_store, "v6")
    promote(signed_store, "v5")
    signed_store.keys = make_signer(first, champion.read_log(signed_store).digests)
    promote(signed_store, "v6")  # published before the rotation, promoted after it
    assert releases.read_manifest(signed_store, "v5")
    key = manifest_key("v7")
    forged = {**releases.read_manifest(signed_store, "v5"), "version": "v7"}
    signed_store.put(key, first.encode(key, "manifest", forged))
    with pytest.raises(IntegrityError, match=r"releases/v7/manifest.json: is signed by key .*, which was replaced"):
        releases.read_manifest(signed_store, "v7")


def test_a_leaked_key_signs_nothing_from_then_on(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signer(first, champion.read_log(signed_store).digests, revoke_earlier=True)
    thief = replace_keys(signed_store, first)
    publish(thief, "v5")
    with pytest.raises(IntegrityError, match=r"releases/v5/manifest.json: is signed by key .*, which was replaced"):
        releases.read_manifest(replace_keys(signed_store, second), "v5")
    promote(thief, "v5")
    with pytest.raises(IntegrityError, match=r"champion/00000006.json: is signed by key"):
        champion.read_log(replace_keys(signed_store, second))


def test_a_leaked_key_rewrites_nothing_that_it_had_signed(signed_store: FolderStore) -> None:
    first = signed_store.keys
    second = make_signer(first, champion.read_log(signed_store).digests, revoke_earlier=True)
    content = champion.history(signed_store)[4].as_document()
    signed_store.put(entry_key(5), first.encode(entry_key(5), "champion-entry", {**content, "version": "v3"}))
    champion.read_log(signed_store)  # who still has the old keys sees nothing
    for read in (champion.read_log, champion.champion):
        with pytest.raises(IntegrityError, match=r"are not the entries that were there when .* a key was revoked"):
            read(replace_keys(signed_store, second))


@pytest.mark.parametrize(
    "changed", [{"sequence": "6"}, {"sequence": 6.0}, {"sequence": None}, {"version": 1}, {"action": "crown"}]
)
def test_an_entry_of_other_types_is_refused_in_words(store: FolderStore, changed: dict[str, object]) -> None:
    make_history(store)
    content = champion.history(store)[4].as_document()
    store.put(entry_key(6), Keys().encode("", "champion-entry", {**content, "sequence": 6, **changed}))
    with pytest.raises(IntegrityError, match=r"00000006.json: is not an entry of the champion log \("):
        champion.read_log(store)


def test_an_entry_or_manifest_that_is_too_large_is_not_read(store: FolderStore) -> None:
    make_history(store)
    store.put(entry_key(6), b"{}," * 30_000)
    with pytest.raises(IntegrityError, match=r"00000006.json: is 90,000 bytes, expected at most 65,536"):
        champion.champion(store)
    store.delete(entry_key(6))
    store.put(manifest_key("v1"), b"{}," * (2 << 20))
    with pytest.raises(IntegrityError, match=r"v1/manifest.json: is 6,291,456 bytes, expected at most 4,194,304"):
        releases.read_manifest(store, "v1")


def test_what_only_resembles_an_entry_or_a_release_does_not_count(store: FolderStore) -> None:
    make_history(store)
    before = audit(store)
    for key in ("champion/٠٠٠٠٠٠٠٦.json", "releases/zz/x/manifest.json", "releases/manifest.json"):
        store.put(key, b"foreign")
    assert audit(store) == before


@pytest.mark.parametrize("told", [{"sequence": "5"}, {"sequence": -1}, {"sequence": 5}, {"sequence": {}}])
def test_a_record_that_makes_no_sense_is_a_fault_of_the_record(store: FolderStore, told: dict[str, object]) -> None:
    make_history(store)
    write_record(store, "odd", "promote", {"status": "done", "started": "", "result": told})
    with pytest.raises(IntegrityError, match=r"^runs/odd/promote.json: says that entry .* promoted None, but that"):
        audit(store)


@pytest.mark.parametrize("result", [None, [], "x", {}])
def test_a_record_without_a_promotion_is_no_fault(store: FolderStore, result: object) -> None:
    make_history(store)
    write_record(store, "odd", "promote", {"status": "done", "started": "", "result": result})
    assert audit(store)["entries"] == 5


def test_an_unsigned_record_of_a_promotion_is_no_evidence(signed_store: FolderStore) -> None:
    promotion = {"status": "done", "started": "", "result": {"sequence": 99, "version": "v9"}}
    write_record(replace_keys(signed_store, Keys()), "forged", "promote", promotion)
    assert audit(signed_store)["entries"] == 5
    write_record(signed_store, "signed", "promote", promotion)
    with pytest.raises(IntegrityError, match=r"^runs/signed/promote.json: says that entry 99"):
        audit(signed_store)


def test_a_process_without_the_key_reads_and_changes_nothing(signed_store: FolderStore) -> None:
    for keys in (Keys(signed_store.keys.trusted), Keys()):
        reader = replace_keys(signed_store, keys)
        before = {stat.key: stat.version for stat in reader.list("") if stat.key != "clock.txt"}
        assert read_champion(reader) == read_champion(signed_store)
        with pytest.raises(SettingsError, match=r"this process has no signing key. Set FMNIST_SIGNING_KEY_FILE"):
            champion.append(reader, version="v4", action="restore", reason="r", write_id="w")
        assert {stat.key: stat.version for stat in reader.list("") if stat.key != "clock.txt"} == before
    assert reader.keys.describe(champion.history(reader)[0].signed_by) == "signed, not verified"


def test_a_reader_with_older_trusted_keys_is_told_what_to_do(signed_store: FolderStore) -> None:
    old = Keys(signed_store.keys.trusted)
    signed_store.keys = make_signer(signed_store.keys, champion.read_log(signed_store).digests)
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    with pytest.raises(
        IntegrityError, match=r"not among the trusted ones.*give this process the newer trusted-keys.json"
    ):
        champion.champion(replace_keys(signed_store, old))


def test_an_earlier_head_proves_that_nothing_was_cut_off(signed_store: FolderStore) -> None:
    head = audit(signed_store)["head"]
    publish(signed_store, "v5")
    promote(signed_store, "v5")
    assert audit(signed_store, head)["entries"] == 6
    for wrong in ("5", "5:abc", "x", ""):
        with pytest.raises(SettingsError, match="is not the head of a champion log"):
            audit(signed_store, wrong)
    for number in ("4", "0", "7"):
        with pytest.raises(IntegrityError, match=rf"champion/: entry {number} is missing or is not the one"):
            audit(signed_store, f"{number}:{head.partition(':')[2]}")


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
def test_what_only_looks_signed_is_refused(data: bytes, trusted: bool) -> None:
    keys = make_signer() if trusted else Keys()
    with pytest.raises(IntegrityError, match=r"^champion/00000001.json: is "):
        keys.decode(entry_key(1), "champion-entry", data)


def test_pruning_sees_what_a_signed_manifest_refers_to(signed_store: FolderStore) -> None:
    blob = put_blob(signed_store, b"the batch")
    facts = {"model_sha256": "a" * 64, "data": {"parts": [blob]}, "run_id": "r"}
    releases.publish(signed_store, "v5", {"model.h5": b"m"}, facts)
    old = dict.fromkeys([*signed_store.root.rglob("*")], 0)
    for path in old:
        os.utime(path, (0, 0))
    later = datetime.now(UTC)
    planned = pruning.plan(signed_store, keep=1, older_than=timedelta(days=1), now=later)
    assert {group.name for group in planned.groups if group.kind == "release"} == {"v1", "v4"}
    assert blob["uri"] not in {group.name for group in planned.groups}
    assert not planned.left_alone
    key = manifest_key("v5")
    whole = signed_store.get(key)
    for damaged in (whole.replace(b'"sig": "', b'"sig": "A'), whole[:40] + whole[41:], whole[:40] + b"!" + whole[41:]):
        signed_store.put(key, damaged)
        planned = pruning.plan(signed_store, keep=1, older_than=timedelta(days=1), now=later)
        assert blob["uri"] not in {group.name for group in planned.groups}
        assert list(planned.left_alone) == [key]


@pytest.mark.integration
def test_every_manipulation_with_the_publishers_own_credentials(
    minio_server: MinioServer, minio_store: S3Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the server each is refused, or detected; no reader gets a forged byte."""
    keys = make_signer()
    minio_store.keys = keys
    make_history(minio_store)
    elsewhere = FolderStore(
        tmp_path, Keys(keys.trusted and keys.trusted.model_copy(update={"store": "0" * 32}), keys.signing)
    )
    make_history(elsewhere)
    publish(elsewhere, "v5")
    promote(elsewhere, "v5")
    for name, value in minio_server.create_user("publisher", bucket).items():
        monkeypatch.setenv(name, value)
    publisher = minio_server.open_store(bucket)
    publisher.keys = Keys(keys.trusted)
    honest = {stat.key: minio_store.get(stat.key) for stat in minio_store.list("")}
    champion_before, refused = read_champion(publisher), []
    for name, manipulation in list_manipulations(elsewhere).items():
        try:
            manipulation.act(publisher)
        except AccessError:
            refused.append(name)
            assert audit(publisher)["entries"] == 5
        else:
            with pytest.raises(FmnistError) as caught:
                audit(publisher)
            assert str(caught.value).startswith((manipulation.fault, publisher.location(manipulation.fault))), name
            try:
                found = read_champion(publisher)
            except FmnistError:
                found = champion_before
            assert found == champion_before, name
        for stat in list(minio_store.list("")):
            if stat.key not in honest:
                minio_store.delete(stat.key)
        for key, data in honest.items():
            minio_store.put(key, data)
    deletions = {name for name in MANIPULATIONS if "deleted" in name}
    assert deletions <= set(refused)
