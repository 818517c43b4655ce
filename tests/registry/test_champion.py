"""The champion log: promotions, rollbacks, withdrawals and restorations, and the detection of lost entries."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from fmnist_tasks.errors import (
    AccessError,
    ConflictError,
    IntegrityError,
    MissingError,
    RejectedError,
    SettingsError,
    StoreError,
)
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import compute_reference
from fmnist_tasks.registry.documents import compute_digest, seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.schemas.releases import Action, Entry, Manifest, ReleaseFacts
from fmnist_tasks.settings import Parameters
from tests.support.documents import digest, make_facts

ORIGIN = champion.Origin("ab" * 32, "cd" * 32)


def promote(store: FolderStore, version: str, writer: str, after: int) -> Entry:
    return champion.append_entry(store, version=version, action="promote", reason="why", write_id=writer, after=after)


def test_the_log_knows_every_release_that_was_the_champion(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0)
    append(store, "promote", "v2", after=1)
    append(store, "withdraw", "v0")
    log = champion.read_log(store)
    assert [log.has_been_champion(version) for version in ("v0", "v1", "v2", "v3")] == [False, True, True, False]


def test_the_last_promotion_decides_the_champion(store: FolderStore) -> None:
    assert champion.find_champion(store) is None
    promote(store, "v1", "run-1", 0)
    last = promote(store, "v2", "run-2", 1)
    assert champion.find_champion(store) == last
    assert last.actor == ""
    assert [(entry.sequence, entry.version) for entry in champion.list_entries(store)] == [(1, "v1"), (2, "v2")]


def test_foreign_objects_beside_the_entries_are_ignored(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    for key in ("champion/00000001.json~", "champion/notes.txt", "champion-receipts/notes.txt"):
        store.put(key, b"foreign")
    assert champion.list_entries(store) == [first]
    assert champion.find_champion(store) == first


@pytest.mark.parametrize("text", ["gepr\udcfcft", "\ud83d", "red\x1b[31m\nand two lines"])
def test_an_unprintable_reason_becomes_one_line_of_text(store: FolderStore, text: str) -> None:
    champion.append_entry(store, version="v1", action="promote", reason=text, actor=text, write_id="w", after=0)
    (entry,) = champion.list_entries(store)
    for stored in (entry.reason, entry.actor):
        assert stored.encode().decode().isprintable()
    assert champion.find_champion(store) == entry


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 4, "colour": "x"}, "has schema version 4, not 3: install the version of this project that"),
        ({"colour": "x"}, "colour: unknown; it was probably edited by hand, and is not used"),
    ],
)
def test_an_entry_of_a_newer_version_or_with_an_unknown_field_is_refused_with_a_remedy(
    store: FolderStore, changes: dict[str, object], message: str
) -> None:
    entry = promote(store, "v1", "run-1", 0)
    store.put("champion/00000001.json", seal({**entry.to_json(), **changes}))
    for read in (champion.find_champion, champion.read_log):
        with pytest.raises(IntegrityError, match=rf"^champion/00000001\.json:? {message}"):
            read(store)


def test_an_entry_is_valid_even_if_its_receipt_cannot_be_written(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = FolderStore.put

    def refuse(self: FolderStore, key: str, data: bytes) -> None:
        if key.startswith("champion-receipts/"):
            raise AccessError("Permission denied")
        put(self, key, data)

    monkeypatch.setattr(FolderStore, "put", refuse)
    assert champion.find_champion(store) is None
    assert promote(store, "v1", "run-1", 0) == champion.find_champion(store)
    assert caplog.messages == ["entry 1 is in the champion log, but its receipt cannot be written: Permission denied"]


def test_a_missing_entry_never_brings_back_an_older_champion(store: FolderStore) -> None:
    for number in range(1, 6):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    for missing in range(1, 6):
        key = f"champion/{missing:08d}.json"
        entry = store.get(key)
        store.delete(key)
        gap = (
            f"champion/{missing + 1:08d}.json: the preceding entry {missing} of the champion log is missing; restore "
            "it from a backup or an earlier version of the object"
        )
        receipt = f"champion-receipts/{missing:08d}.txt"
        lost = (
            f"{key} is missing, although {receipt} shows that it was written. Restore it from a backup. If that is "
            f"impossible and you accept the loss, delete the receipts from {receipt} on, as the store's administrator"
        )
        for read in (
            champion.find_champion,
            champion.list_entries,
            lambda store: champion.find_champion_at(store, datetime.now(UTC)),
        ):
            with pytest.raises(IntegrityError, match=f"^{gap if missing < 5 else lost}$"):
                read(store)
        with pytest.raises(IntegrityError):
            promote(store, "v6", "run-6", 5)
        store.put(key, entry)
    assert len(champion.list_entries(store)) == 5


def test_a_log_that_lost_all_entries_is_not_an_empty_log(store: FolderStore) -> None:
    for number in range(1, 4):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    for stat in list(store.list("champion/")):
        store.delete(stat.key)
    with pytest.raises(IntegrityError, match=r"champion/00000001.json is missing"):
        champion.find_champion(store)
    for stat in list(store.list("champion-receipts/")):  # as the message says
        store.delete(stat.key)
    assert champion.find_champion(store) is None


def test_a_writer_killed_before_its_receipt_writes_it_in_the_next_attempt(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.delete("champion-receipts/00000001.txt")
    promote(store, "v1", "run-1", 0)
    store.delete("champion/00000001.json")
    with pytest.raises(IntegrityError, match=r"00000001.json is missing"):
        champion.find_champion(store)


def test_an_entry_written_while_the_log_is_read_does_not_look_lost(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    waiting = [2, 3]

    class GrowingStore(FolderStore):
        """Another writer promotes between the two listings."""

        def list(self, prefix: str, after: str = ""):
            stats = list(super().list(prefix, after))
            if waiting and prefix == "champion-receipts/":
                number = waiting.pop(0)
                promote(store, f"v{number}", f"run-{number}", number - 1)
            return iter(stats)

    for number in (2, 3):
        entry = champion.find_champion(GrowingStore(store.root))
        assert entry
        assert entry.version == f"v{number}"


def test_known_entries_are_not_read_again(store: FolderStore) -> None:
    known = champion.Log()
    for number in range(1, 6):
        promote(store, f"v{number}", f"run-{number}", number - 1)
        if number == 3:
            known = champion.read_log(store)
    log = champion.read_log(store)
    store.put("champion/00000002.json", b"changed since")
    assert champion.read_log(store, known) == log


def test_an_entry_has_action_reason_actor_and_time(store: FolderStore) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    first = champion.append_entry(
        store, version="v1", action="promote", reason="good", write_id="run-1", actor="schedule", after=0, origin=ORIGIN
    )
    assert first == Entry(
        sequence=1,
        version="v1",
        action="promote",
        reason="good",
        write_id="run-1",
        time=first.time,
        actor="schedule",
        replaces=None,
        model_sha256=ORIGIN.model_sha256,
        inputs=ORIGIN.inputs,
    )
    second = champion.append_entry(
        store, version="v0", action="rollback", reason="v1 is bad", write_id="me", actor="ann", after=1, origin=ORIGIN
    )
    assert (second.actor, second.replaces, second.reason) == ("ann", "v1", "v1 is bad")
    for entry in (first, second):
        assert before <= datetime.fromisoformat(entry.time) <= datetime.now(UTC)
    assert champion.list_entries(store) == [first, second]


def test_a_repeated_write_finds_its_entry(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    assert promote(store, "v1", "run-1", 0) == first
    assert len(champion.list_entries(store)) == 2


def test_a_champion_that_changed_since_it_was_read_is_not_replaced(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    for after, expected, entry in ((0, "none", 2), (1, "v1", 2)):
        with pytest.raises(ConflictError) as error:
            promote(store, "v3", "run-3", after)
        assert str(error.value) == (
            f"the champion has changed in the meantime: it was {expected} and is now v{entry} (log entry {entry}); "
            "v3 is not promoted. Clear evaluate_tuned and the tasks after it to compare it with the new champion"
        )
    assert len(champion.list_entries(store)) == 2


def test_a_rollback_from_a_champion_that_changed_is_refused(store: FolderStore) -> None:
    message = (
        "the champion has changed in the meantime: it was none and {}; nothing was rolled back. Look at the new {}"
    )
    for number, actual in enumerate(["there is none now", r"is now v1 \(log entry 1\)"]):
        new = "champion, then roll back to v0 again if necessary"
        with pytest.raises(ConflictError, match=rf"^{message.format(actual, new)}$"):
            append(store, "rollback", "v0", after=5)
        promote(store, f"v{number + 1}", f"run-{number}", number)


def test_an_entry_too_large_to_be_read_is_not_written(store: FolderStore) -> None:
    message = (
        "an entry of the champion log may have 65,536 bytes, but this one has {}; nothing was changed. Shorten the {}"
    )
    write = partial(champion.append_entry, store, version="v1", action="promote", write_id="w", after=0)
    with pytest.raises(SettingsError) as refused:
        write(reason="x" * 70_000)
    (size,) = re.findall(r"has ([0-9,]+);", str(refused.value))
    longest = 70_000 - (int(size.replace(",", "")) - (64 << 10))
    with pytest.raises(SettingsError, match=f"^{message.format('65,537', 'reason')}$"):
        write(reason="x" * (longest + 1))
    written = write(reason="x" * longest)
    assert champion.list_entries(store) == [written]


def test_another_version_with_the_same_write_id_is_another_write(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(ConflictError, match=r"v2 is not promoted"):
        promote(store, "v2", "run-1", 0)


def test_nothing_is_appended_after_a_missing_entry(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(
        ConflictError, match=r"the champion has changed in the meantime: it was none and is now v1 \(log entry 1\)"
    ):
        promote(store, "v3", "run-3", 2)
    assert len(champion.list_entries(store)) == 1


def test_the_champion_at_any_time_is_found(store: FolderStore) -> None:
    start = datetime(2026, 1, 5, 2, tzinfo=UTC)
    assert champion.find_champion_at(store, start) is None
    for number in range(1, 12):
        put_entry(store, number, start + timedelta(weeks=number))
    assert champion.find_champion_at(store, start) is None
    for number in range(1, 12):
        promotion = start + timedelta(weeks=number)
        for moment in (promotion, promotion + timedelta(days=6)):
            entry = champion.find_champion_at(store, moment)
            assert entry
            assert entry.version == f"v{number}"


def put_entry(store: FolderStore, number: int, time: datetime, **changes: Any) -> None:
    """Write an entry with that time, as a process with a wrong clock does; the entries are not linked."""
    facts = {"version": f"v{number}", "action": "promote", "reason": "why", "write_id": f"run-{number}", "actor": ""}
    entry = Entry(**{**facts, "sequence": number, "time": time.isoformat(), **changes})
    store.put(f"champion/{number:08d}.json", seal(entry.to_json()))


def test_a_wrong_time_in_the_log_is_corrected(store: FolderStore) -> None:
    """Times come from the store; an earlier version may have written an entry with the time of a wrong clock."""
    now = datetime.now(UTC)
    put_entry(store, 1, now - timedelta(weeks=2))
    put_entry(store, 2, now + timedelta(days=365 * 70))
    for moment, version in ((now - timedelta(weeks=1), "v1"), (now + timedelta(minutes=1), "v2")):
        entry = champion.find_champion_at(store, moment)
        assert entry
        assert entry.version == version
    third = promote(store, "v3", "run-3", 2)
    assert now - timedelta(seconds=1) <= datetime.fromisoformat(third.time) <= datetime.now(UTC)
    assert champion.find_champion_at(store, datetime.now(UTC) + timedelta(minutes=1)) == third


def test_an_entry_is_not_later_than_those_after_it(store: FolderStore) -> None:
    """The clock was ahead, and the object was written again later, from a backup."""
    now = datetime.now(UTC)
    put_entry(store, 1, now + timedelta(days=365 * 70))
    put_entry(store, 2, now - timedelta(weeks=1), action="withdraw")
    entry = champion.find_champion_at(store, now - timedelta(days=3))
    assert entry
    assert entry.sequence == 1
    assert champion.find_champion_at(store, now - timedelta(weeks=2)) is None


def test_the_time_of_an_entry_is_that_of_the_store(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store_time = datetime.now(UTC) - timedelta(days=400)
    monkeypatch.setattr(champion, "read_clock", lambda _: store_time)
    assert promote(store, "v1", "run-1", 0).time == store_time.isoformat(timespec="seconds")


def test_the_previous_champion_is_another_release(store: FolderStore) -> None:
    previous = []
    for number, version in enumerate(["v1", "v2", "v2", "v3", "v3"]):
        promote(store, version, f"run-{number}", number)
        previous.append(champion.read_log(store).previous_champion)
    assert previous == [None, "v1", "v1", "v2", "v2"]


def test_a_copied_entry_is_refused(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.put("champion/00000002.json", store.get("champion/00000001.json"))
    message = (
        "champion/00000002.json contains entry 1 of the champion log, so it was copied or renamed; restore the "
        "original from a backup or an earlier version of the object"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        champion.find_champion(store)


def append(store: FolderStore, action: Action, version: str, reason: str = "why", **fields) -> Entry:
    return champion.append_entry(
        store,
        version=version,
        action=action,
        reason=reason,
        write_id=f"{action} {version} {reason}",
        actor="ann",
        **fields,
    )


def test_a_rollback_withdraws_the_release_it_replaces_until_it_is_restored(store: FolderStore) -> None:
    assert champion.read_log(store).withdrawn == {}
    append(store, "promote", "v1", after=0, origin=champion.Origin("11", "in 1"))
    append(store, "promote", "v2", after=1, origin=champion.Origin("22", "in 2"))
    entry = append(store, "rollback", "v1", "v2 is bad", after=2, origin=champion.Origin("22", "in 2"))
    log = champion.read_log(store)
    assert log.champion == entry == champion.find_champion(store)
    assert log.withdrawn == {"v2": entry}
    for candidate in (champion.Origin("22", "in 3"), champion.Origin("33", "in 2"), champion.Origin("22")):
        assert log.find_withdrawal(candidate) == ("v2", entry)
    for candidate in (champion.Origin("33", "in 3"), champion.Origin("11", "in 1"), champion.Origin("33")):
        assert log.find_withdrawal(candidate) is None
    restored = append(store, "restore", "v2")
    log = champion.read_log(store)
    assert (log.withdrawn, log.champion, champion.find_champion(store)) == ({}, entry, entry)
    assert log.entries[-1] == restored


def test_a_rollback_to_a_withdrawn_release_lifts_its_withdrawal(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0)
    append(store, "promote", "v2", after=1)
    append(store, "rollback", "v1", after=2)
    append(store, "rollback", "v2", after=3)
    assert list(champion.read_log(store).withdrawn) == ["v1"]


def test_a_candidate_that_repeats_a_withdrawn_release_is_not_promoted(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0, origin=champion.Origin("11", "in 1"))
    append(store, "withdraw", "v2", "wrong labels", origin=champion.Origin("22", "in 2"))
    day = champion.list_entries(store)[-1].time[:10]
    message = (
        "v3 is the model of release v2, or comes from the same data, code and parameters, and that release was "
        rf"withdrawn by ann on {day}: wrong labels\. Withdraw the batch that caused it, or lift the withdrawal "
        r"\(fmnist restore v2 --reason …\)"
    )
    for origin in (champion.Origin("22", "in 3"), champion.Origin("33", "in 2")):
        with pytest.raises(RejectedError, match=f"^{message}$"):
            append(store, "promote", "v3", after=1, origin=origin)
    append(store, "restore", "v2")
    assert append(store, "promote", "v3", after=1, origin=champion.Origin("22", "in 2")).sequence == 4


def test_the_withdrawal_of_the_candidate_itself_is_described_without_an_actor(store: FolderStore) -> None:
    entry = champion.append_entry(store, version="v2", action="withdraw", reason="bad", write_id="w")
    assert champion.describe_withdrawal("v2", "v2", entry) == (
        f"v2 is release v2, and that release was withdrawn on {entry.time[:10]}: bad. Withdraw the batch that caused "
        "it, or lift the withdrawal (fmnist restore v2 --reason …)"
    )


def test_a_withdrawn_release_with_only_a_version_is_recognised_by_its_suffix(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0)
    for version in ("20261123T020000Z-0c50bb14", "20261130T020000Z-1c50bb14.2"):
        append(store, "withdraw", version)
    log = champion.read_log(store)
    for start in ("0c50bb14", "1c50bb14"):
        assert log.find_withdrawal(champion.Origin(start + 56 * "0"))
    assert not log.find_withdrawal(champion.Origin("0c50bb15" + 56 * "0"))


def test_a_withdrawn_copy_of_a_release_bars_no_other_model(store: FolderStore) -> None:
    for version in ("20261123T020000Z-0c50bb14-", "20261123T020000Z-0c50bb14-2", "copy"):
        append(store, "withdraw", version)
    log = champion.read_log(store)
    for digit in "02a":
        assert log.find_withdrawal(champion.Origin(64 * digit)) is None
    assert log.find_withdrawal(champion.Origin()) is None


@pytest.mark.parametrize("version", ["", "..", "-x", "20261123T020000Z-0c50bb14 copy", "a/b", "v" * 5000 + " "])
def test_a_name_that_is_not_a_version_enters_no_log(store: FolderStore, version: str) -> None:
    for action in ("withdraw", "restore", "promote", "rollback"):
        with pytest.raises(MissingError, match=r"^'.{0,100} is not the version of a release; `fmnist releases` lists"):
            append(store, action, version, after=0)
    with pytest.raises(MissingError, match="is not the version of a release"):
        releases.read_manifest(store, version)


def test_a_withdrawal_in_between_does_not_stop_a_promotion(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0)
    append(store, "withdraw", "v0")
    entry = append(store, "promote", "v2", after=1)
    assert (entry.sequence, entry.replaces) == (3, "v1")
    assert champion.read_log(store).previous_champion == "v1"


def test_invalid_withdrawals_and_restorations_are_refused(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0)
    with pytest.raises(RejectedError, match=r"v1 is the champion: roll back to another release, which withdraws it"):
        append(store, "withdraw", "v1")
    with pytest.raises(RejectedError, match=r"release v2 is not withdrawn"):
        append(store, "restore", "v2")
    append(store, "withdraw", "v2", "bad")
    with pytest.raises(RejectedError, match=r"release v2 is already withdrawn: bad"):
        append(store, "withdraw", "v2", "again")
    assert len(champion.list_entries(store)) == 2


def test_an_entry_of_an_earlier_version_is_refused_with_a_remedy(store: FolderStore) -> None:
    """It has no schema version, actor or previous champion."""
    facts = {"reason": "why", "write_id": "w", "time": "2026-11-02T02:00:00+00:00"}
    store.put("champion/00000001.json", seal({"sequence": 1, "version": "v1", "action": "promote", **facts}))
    message = r"^champion/00000001\.json has schema version 1, not 3: version 0\.1 of this project wrote it; start with"
    for read in (champion.find_champion, champion.read_log, lambda store: promote(store, "v2", "run-2", 1)):
        with pytest.raises(IntegrityError, match=message):
            read(store)
    assert [stat.key for stat in store.list("champion/")] == ["champion/00000001.json"]


def test_a_rollback_that_does_not_name_the_previous_champion_withdraws_it_too(store: FolderStore) -> None:
    now = datetime.now(UTC)
    put_entry(store, 1, now)
    put_entry(store, 2, now)
    put_entry(store, 3, now, version="v1", action="rollback")
    log = champion.read_log(store)
    assert log.entries[-1].replaces is None
    assert list(log.withdrawn) == ["v2"]


def test_the_log_has_the_origin_of_promoted_releases(store: FolderStore) -> None:
    append(store, "promote", "v1", after=0, origin=ORIGIN)
    log = champion.read_log(store)
    assert log.find_origin("v1") == ORIGIN
    assert log.find_origin("v2") == champion.Origin()


def make_manifest(facts: ReleaseFacts) -> Manifest:
    files = {"model.h5": compute_reference("releases/v1/model.h5", b"model")}
    return Manifest(**dict(facts), version="v1", files=files)


def test_the_origin_of_a_release_with_parameters_of_another_version_is_its_model() -> None:
    facts = make_facts("model", parameters=Parameters().to_json() | {"colour": "red"})
    assert releases.make_manifest_origin(make_manifest(facts)) == champion.Origin(digest("model"))


def test_the_origin_of_a_release_is_its_model_and_its_data_code_and_parameters() -> None:
    facts = make_facts("model", parameters=Parameters(seed=5, force=True, approval=True).to_json())
    inputs = {name: value for name, value in facts.parameters.items() if name not in {"force", "approval"}}
    inputs |= {"data": digest("data"), "code": digest("code")}
    assert inputs["seed"] == 5
    origin = champion.Origin(digest("model"), compute_digest(inputs))
    assert releases.make_manifest_origin(make_manifest(facts)) == origin


def test_appends_end_if_other_writers_are_always_first(store: FolderStore) -> None:
    """Each attempt reads only the entries that are new."""
    reads: list[str] = []

    class BusyStore(FolderStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            return False

        def get(self, key: str, max_bytes: int | None = None) -> bytes:
            reads.append(key)
            return super().get(key, max_bytes)

    promote(store, "v1", "run-1", 0)
    message = "cannot add v2 to the champion log: other writers were first, 100 times in a row; retry later"
    with pytest.raises(StoreError, match=rf"^{message}$"):
        promote(BusyStore(store.root), "v2", "run-2", 1)
    assert reads == ["champion/00000001.json"]
