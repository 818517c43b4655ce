from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fmnist_tasks.errors import AccessError, ConflictError, IntegrityError, RejectedError, StoreError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.local import FolderStore

ORIGIN = champion.Origin("ab" * 32, "cd" * 32)


def promote(store: FolderStore, version: str, writer: str, after: int) -> champion.Entry:
    return champion.append(store, version=version, action="promote", reason="why", write_id=writer, after=after)


def test_the_highest_entry_is_the_champion(store: FolderStore) -> None:
    assert champion.champion(store) is None
    promote(store, "v1", "run-1", 0)
    last = promote(store, "v2", "run-2", 1)
    assert champion.champion(store) == last
    assert [(entry.sequence, entry.version) for entry in champion.history(store)] == [(1, "v1"), (2, "v2")]


def test_what_others_put_beside_the_entries_does_not_count(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    for key in ("champion/00000001.json~", "champion/notes.txt", "champion-receipts/notes.txt"):
        store.put(key, b"foreign")
    assert champion.history(store) == [first]
    assert champion.champion(store) == first


@pytest.mark.parametrize("typed", ["gepr\udcfcft", "\ud83d", "red\x1b[31m\nand two lines"])
def test_a_reason_that_no_page_could_show_becomes_one_line_of_text(store: FolderStore, typed: str) -> None:
    champion.append(store, version="v1", action="promote", reason=typed, actor=typed, write_id="w", after=0)
    (entry,) = champion.history(store)
    for text in (entry.reason, entry.actor):
        assert text.encode().decode().isprintable()
    assert champion.champion(store) == entry


def test_an_entry_of_a_newer_version_is_refused_with_a_remedy(store: FolderStore) -> None:
    entry = promote(store, "v1", "run-1", 0)
    store.put("champion/00000001.json", seal({**entry.as_document(), "signature": "x"}))
    with pytest.raises(
        IntegrityError, match=r"champion/00000001\.json: was written by a newer version .*; install that"
    ):
        champion.champion(store)


def test_a_receipt_that_cannot_be_written_undoes_no_entry(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = FolderStore.put

    def refuse(self: FolderStore, key: str, data: bytes) -> None:
        if key.startswith("champion-receipts/"):
            raise AccessError("Permission denied")
        put(self, key, data)

    monkeypatch.setattr(FolderStore, "put", refuse)
    assert champion.champion(store) is None
    assert promote(store, "v1", "run-1", 0) == champion.champion(store)
    assert "its receipt cannot be written: Permission denied" in caplog.text


def test_a_missing_entry_never_brings_an_older_champion_back(store: FolderStore) -> None:
    for number in range(1, 6):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    for missing in range(1, 6):
        key = f"champion/{missing:08d}.json"
        entry = store.get(key)
        store.delete(key)
        gap = rf"champion/{missing + 1:08d}.json: the champion log has no entry {missing} before it; recover"
        lost = rf"{key} is missing, although champion-receipts/{missing:08d}.txt says that it was written: it was lost"
        for read in (champion.champion, champion.history, lambda store: champion.champion_at(store, datetime.now(UTC))):
            with pytest.raises(IntegrityError, match=gap if missing < 5 else lost):
                read(store)
        with pytest.raises(IntegrityError):
            promote(store, "v6", "run-6", 5)
        store.put(key, entry)
    assert len(champion.history(store)) == 5


def test_a_log_that_lost_all_entries_is_not_a_new_one(store: FolderStore) -> None:
    for number in range(1, 4):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    for stat in list(store.list("champion/")):
        store.delete(stat.key)
    with pytest.raises(IntegrityError, match=r"champion/00000001.json is missing"):
        champion.champion(store)
    for stat in list(store.list("champion-receipts/")):  # what the message offers
        store.delete(stat.key)
    assert champion.champion(store) is None


def test_a_writer_killed_before_its_receipt_leaves_it_when_it_comes_again(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.delete("champion-receipts/00000001.txt")
    promote(store, "v1", "run-1", 0)
    store.delete("champion/00000001.json")
    with pytest.raises(IntegrityError, match=r"00000001.json is missing"):
        champion.champion(store)


def test_an_entry_written_while_the_log_is_read_is_no_loss(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    waiting = [2, 3]

    class Growing(FolderStore):
        """Other writers promote between two listings."""

        def list(self, prefix: str, after: str = ""):
            found = list(super().list(prefix, after))
            if waiting and prefix == "champion-receipts/":
                number = waiting.pop(0)
                promote(store, f"v{number}", f"run-{number}", number - 1)
            return iter(found)

    for number in (2, 3):
        found = champion.champion(Growing(store.root))
        assert found
        assert found.version == f"v{number}"


def test_what_is_known_of_the_log_is_not_read_again(store: FolderStore) -> None:
    known = champion.Log()
    for number in range(1, 6):
        promote(store, f"v{number}", f"run-{number}", number - 1)
        if number == 3:
            known = champion.read_log(store)
    log = champion.read_log(store)
    store.put("champion/00000002.json", b"changed since")
    assert champion.read_log(store, known) == log


def test_an_entry_says_what_was_done_why_by_whom_and_when(store: FolderStore) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    first = champion.append(
        store, version="v1", action="promote", reason="good", write_id="run-1", actor="schedule", after=0, origin=ORIGIN
    )
    assert first == champion.Entry(
        1, "v1", "promote", "good", "run-1", first.time, "schedule", None, ORIGIN.model_sha256, ORIGIN.inputs
    )
    second = champion.append(
        store, version="v0", action="rollback", reason="v1 is bad", write_id="me", actor="ann", after=1, origin=ORIGIN
    )
    assert (second.actor, second.replaces, second.reason) == ("ann", "v1", "v1 is bad")
    for entry in (first, second):
        assert before <= datetime.fromisoformat(entry.time) <= datetime.now(UTC)
    assert champion.history(store) == [first, second]


def test_a_writer_that_comes_again_finds_its_entry(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    assert promote(store, "v1", "run-1", 0) == first
    assert len(champion.history(store)) == 2


def test_a_champion_that_changed_since_it_was_read_is_not_replaced(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    for after, formerly, entry in ((0, "none", 2), (1, "v1", 2)):
        with pytest.raises(ConflictError) as error:
            promote(store, "v3", "run-3", after)
        assert str(error.value) == (
            f"the champion has changed since: it was {formerly}, and is v{entry} by entry {entry} of the log; "
            "v3 is not promoted. Clear evaluate_tuned and what follows to compare it with the new champion"
        )
    assert len(champion.history(store)) == 2


def test_another_version_of_the_same_writer_is_not_taken_for_the_one_in_place(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(ConflictError, match=r"v2 is not promoted"):
        promote(store, "v2", "run-1", 0)


def test_nothing_is_appended_to_an_entry_that_is_not_there(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(ConflictError, match=r"the champion has changed since: it was none, and is v1 by entry 1"):
        promote(store, "v3", "run-3", 2)
    assert len(champion.history(store)) == 1


def test_who_was_champion_when(store: FolderStore) -> None:
    start = datetime(2026, 1, 5, 2, tzinfo=UTC)
    assert champion.champion_at(store, start) is None
    for number in range(1, 12):
        time = (start + timedelta(weeks=number)).isoformat()
        entry = champion.Entry(number, f"v{number}", "promote", "why", f"run-{number}", time)
        store.put(f"champion/{number:08d}.json", seal(entry.as_document()))
    assert champion.champion_at(store, start) is None
    for number in range(1, 12):
        exactly = start + timedelta(weeks=number)
        for moment in (exactly, exactly + timedelta(days=6)):
            found = champion.champion_at(store, moment)
            assert found
            assert found.version == f"v{number}"


def put_entry(store: FolderStore, number: int, time: datetime) -> None:
    entry = champion.Entry(number, f"v{number}", "promote", "why", f"run-{number}", time.isoformat())
    store.put(f"champion/{number:08d}.json", seal(entry.as_document()))


def test_a_clock_that_was_ahead_does_not_stay_in_the_log(store: FolderStore) -> None:
    """Times come from the store; an entry that an earlier version wrote by a wrong clock misleads nobody for ever."""
    now = datetime.now(UTC)
    put_entry(store, 1, now - timedelta(weeks=2))
    put_entry(store, 2, now + timedelta(days=365 * 70))
    for moment, version in ((now - timedelta(weeks=1), "v1"), (now + timedelta(minutes=1), "v2")):
        found = champion.champion_at(store, moment)
        assert found
        assert found.version == version
    third = promote(store, "v3", "run-3", 2)
    assert now - timedelta(seconds=1) <= datetime.fromisoformat(third.time) <= datetime.now(UTC)
    found = champion.champion_at(store, datetime.now(UTC) + timedelta(minutes=1))
    assert found == third


def test_the_time_of_an_entry_is_the_stores(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = datetime.now(UTC) - timedelta(days=400)
    monkeypatch.setattr(champion, "read_clock", lambda _: slow)
    assert promote(store, "v1", "run-1", 0).time == slow.isoformat(timespec="seconds")


def test_the_champion_before(store: FolderStore) -> None:
    before = []
    for number, version in enumerate(["v1", "v2", "v2", "v3", "v3"]):
        promote(store, version, f"run-{number}", number)
        before.append(champion.read_log(store).champion_before)
    assert before == [None, "v1", "v1", "v2", "v2"]


def test_a_copied_entry_is_no_entry(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.put("champion/00000002.json", store.get("champion/00000001.json"))
    with pytest.raises(IntegrityError, match=r"00000002.json: holds entry 1"):
        champion.champion(store)


def act(store: FolderStore, action: champion.Action, version: str, reason: str = "why", **more) -> champion.Entry:
    return champion.append(
        store,
        version=version,
        action=action,
        reason=reason,
        write_id=f"{action} {version} {reason}",
        actor="ann",
        **more,
    )


def test_a_rollback_withdraws_the_release_it_replaces_until_it_is_restored(store: FolderStore) -> None:
    assert champion.read_log(store).withdrawn == {}
    act(store, "promote", "v1", after=0, origin=champion.Origin("11", "in 1"))
    act(store, "promote", "v2", after=1, origin=champion.Origin("22", "in 2"))
    entry = act(store, "rollback", "v1", "v2 is bad", after=2, origin=champion.Origin("22", "in 2"))
    log = champion.read_log(store)
    assert log.champion == entry == champion.champion(store)
    assert log.withdrawn == {"v2": entry}
    for candidate in (champion.Origin("22", "in 3"), champion.Origin("33", "in 2"), champion.Origin("22")):
        assert log.find_withdrawal(candidate) == ("v2", entry)
    for candidate in (champion.Origin("33", "in 3"), champion.Origin("11", "in 1"), champion.Origin("33")):
        assert log.find_withdrawal(candidate) is None
    restored = act(store, "restore", "v2")
    log = champion.read_log(store)
    assert (log.withdrawn, log.champion, champion.champion(store)) == ({}, entry, entry)
    assert log.entries[-1] == restored


def test_a_rollback_to_a_withdrawn_release_lifts_its_withdrawal(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0)
    act(store, "promote", "v2", after=1)
    act(store, "rollback", "v1", after=2)
    act(store, "rollback", "v2", after=3)
    assert list(champion.read_log(store).withdrawn) == ["v1"]


def test_a_candidate_that_repeats_a_withdrawn_release_is_not_promoted(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0, origin=champion.Origin("11", "in 1"))
    act(store, "withdraw", "v2", "wrong labels", origin=champion.Origin("22", "in 2"))
    told = (
        r"v3 is the model of release v2, or .*, and that release was withdrawn by ann on .*: wrong labels\. "
        r"Withdraw .*\(fmnist restore v2 "
    )
    for origin in (champion.Origin("22", "in 3"), champion.Origin("33", "in 2")):
        with pytest.raises(RejectedError, match=told):
            act(store, "promote", "v3", after=1, origin=origin)
    act(store, "restore", "v2")
    assert act(store, "promote", "v3", after=1, origin=champion.Origin("22", "in 2")).sequence == 4


def test_a_withdrawn_release_of_which_only_the_version_is_known_is_recognised_by_its_end(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0)
    act(store, "withdraw", "20261123T020000Z-0c50bb14")
    log = champion.read_log(store)
    assert log.find_withdrawal(champion.Origin("0c50bb14" + 56 * "0"))
    assert not log.find_withdrawal(champion.Origin("0c50bb15" + 56 * "0"))


def test_a_withdrawal_in_between_does_not_stop_a_promotion(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0)
    act(store, "withdraw", "v0")
    entry = act(store, "promote", "v2", after=1)
    assert (entry.sequence, entry.replaces) == (3, "v1")
    assert champion.read_log(store).champion_before == "v1"


def test_what_cannot_be_withdrawn_or_restored(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0)
    with pytest.raises(RejectedError, match=r"v1 is the champion: roll back to another release, which withdraws it"):
        act(store, "withdraw", "v1")
    with pytest.raises(RejectedError, match=r"release v2 is not withdrawn"):
        act(store, "restore", "v2")
    act(store, "withdraw", "v2", "bad")
    with pytest.raises(RejectedError, match=r"release v2 was withdrawn already: bad"):
        act(store, "withdraw", "v2", "once more")
    assert len(champion.history(store)) == 2


def test_an_entry_of_an_earlier_version_is_read(store: FolderStore) -> None:
    """Without the names of who acted and of the champion before: a rollback withdraws that one all the same."""
    facts = {"reason": "why", "write_id": "w", "time": "2026-11-02T02:00:00+00:00"}
    for number, (version, action) in enumerate([("v1", "promote"), ("v2", "promote"), ("v1", "rollback")], 1):
        entry = {"sequence": number, "version": version, "action": action, **facts}
        store.put(f"champion/{number:08d}.json", seal(entry))
    assert list(champion.read_log(store).withdrawn) == ["v2"]


def test_the_log_knows_the_origin_of_what_was_promoted(store: FolderStore) -> None:
    act(store, "promote", "v1", after=0, origin=ORIGIN)
    log = champion.read_log(store)
    assert log.origin_of("v1") == ORIGIN
    assert log.origin_of("v2") == champion.Origin()


def test_the_origin_of_a_release_with_parameters_of_another_version_is_its_model() -> None:
    manifest = {"model_sha256": "11", "parameters": {"colour": "red"}, "data": {"fingerprint": "f"}, "code": {}}
    assert releases.origin_of(manifest) == champion.Origin("11")


def test_a_store_that_takes_no_entry_is_given_up(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(FolderStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            return False

    with pytest.raises(StoreError, match=r"cannot add v1 to the champion log: 100 other writers came first; try again"):
        promote(Stubborn(store.root), "v1", "run-1", 0)
