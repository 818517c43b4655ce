from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.local import FolderStore


def promote(store: FolderStore, version: str, writer: str, after: int) -> champion.Entry:
    return champion.append(store, version=version, action="promote", reason="why", write_id=writer, after=after)


def test_the_highest_entry_is_the_champion(store: FolderStore) -> None:
    assert champion.champion(store) is None
    promote(store, "v1", "run-1", 0)
    last = promote(store, "v2", "run-2", 1)
    assert champion.champion(store) == last
    assert [(entry.sequence, entry.version) for entry in champion.history(store)] == [(1, "v1"), (2, "v2")]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 33])
def test_the_highest_entry_is_found_without_reading_the_others(store: FolderStore, length: int) -> None:
    looked = []

    class Watched(FolderStore):
        def stat(self, key: str):
            looked.append(key)
            return super().stat(key)

    for number in range(1, length + 1):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    found = champion.champion(Watched(store.root))
    assert found
    assert found.sequence == length
    assert len(looked) <= 2 * length.bit_length() + 1


def test_a_missing_entry_never_brings_an_older_champion_back(store: FolderStore) -> None:
    for number in range(1, 14):
        last = promote(store, f"v{number}", f"run-{number}", number - 1)
    found = 0
    for missing in range(1, 13):
        key = f"champion/{missing:08d}.json"
        entry = store.get(key)
        store.delete(key)
        gap = rf"champion/{missing + 1:08d}.json: the champion log has no entry {missing} before it; restore"
        with pytest.raises(IntegrityError, match=gap):
            champion.history(store)
        with contextlib.suppress(IntegrityError):
            assert champion.champion(store) == last
            found += 1
        store.put(key, entry)
    assert 0 < found < 12  # where the search does not look, the gap is not noticed, and does no harm


@pytest.mark.parametrize("last", [2, 4, 6])
def test_no_champion_is_named_where_the_search_meets_a_gap(store: FolderStore, last: int) -> None:
    for number in range(1, last + 1):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    later = champion.Entry(last + 2, "v", "promote", "why", "run", "2026-01-05T02:00:00+00:00")
    store.put(f"champion/{last + 2:08d}.json", seal(later.as_json()))
    gap = rf"champion/{last + 2:08d}.json: the champion log has no entry {last + 1} before it; restore"
    with pytest.raises(IntegrityError, match=gap):
        champion.champion(store)


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("meanwhile", [1, 2, 4])
def test_an_entry_that_is_written_during_the_search_is_found(store: FolderStore, before: int, meanwhile: int) -> None:
    waiting = list(range(before + 1, before + meanwhile + 1))

    class Growing(FolderStore):
        """Other writers promote after the highest number was looked for."""

        def list(self, prefix: str, after: str = ""):
            if waiting:
                number = waiting.pop(0)
                promote(store, f"v{number}", f"run-{number}", number - 1)
            return super().list(prefix, after)

    for number in range(1, before + 1):
        promote(store, f"v{number}", f"run-{number}", number - 1)
    found = champion.champion(Growing(store.root))
    assert found
    assert found.version == f"v{before + meanwhile}"


def test_the_history_may_begin_after_a_number(store: FolderStore) -> None:
    entries = [promote(store, f"v{number}", f"run-{number}", number - 1) for number in range(1, 6)]
    for after in range(6):
        assert champion.history(store, after) == entries[after:]


def test_an_entry_says_what_was_done_why_by_whom_and_when(store: FolderStore) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    entry = champion.append(store, version="v1", action="rollback", reason="v2 is bad", write_id="me", after=0)
    assert entry == champion.Entry(1, "v1", "rollback", "v2 is bad", "me", entry.time)
    assert before <= datetime.fromisoformat(entry.time) <= datetime.now(UTC)
    assert champion.history(store) == [entry]


def test_a_writer_that_comes_again_finds_its_entry(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    assert promote(store, "v1", "run-1", 0) == first
    assert len(champion.history(store)) == 2


def test_a_champion_that_changed_since_it_was_read_is_not_replaced(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    for after, formerly, entry in ((0, "unset", 1), (1, "v1", 2)):
        with pytest.raises(ConflictError) as error:
            promote(store, "v3", "run-3", after)
        assert str(error.value) == (
            f"the champion is no longer {formerly}: entry {entry} made it v{entry} in the meantime; v3 is not promoted"
            ". Clear evaluate_tuned and what follows to judge it against the new champion"
        )
    assert len(champion.history(store)) == 2


def test_another_version_of_the_same_writer_is_not_taken_for_the_one_in_place(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(ConflictError, match=r"v2 is not promoted"):
        promote(store, "v2", "run-1", 0)


def test_nothing_is_appended_to_an_entry_that_is_not_there(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    with pytest.raises(MissingError, match=r"00000002.json"):
        promote(store, "v3", "run-3", 2)
    assert len(champion.history(store)) == 1


def test_who_was_champion_when(store: FolderStore) -> None:
    start = datetime(2026, 1, 5, 2, tzinfo=UTC)
    assert champion.champion_at(store, start) is None
    for number in range(1, 12):
        time = (start + timedelta(weeks=number)).isoformat()
        entry = champion.Entry(number, f"v{number}", "promote", "why", f"run-{number}", time)
        store.put(f"champion/{number:08d}.json", seal(entry.as_json()))
    assert champion.champion_at(store, start) is None
    for number in range(1, 12):
        exactly = start + timedelta(weeks=number)
        for moment in (exactly, exactly + timedelta(days=6)):
            found = champion.champion_at(store, moment)
            assert found
            assert found.version == f"v{number}"


def test_a_clock_that_is_behind_does_not_turn_the_order_round(store: FolderStore) -> None:
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    store.put("champion/00000001.json", seal(champion.Entry(1, "v1", "promote", "why", "run-1", ahead).as_json()))
    assert promote(store, "v2", "run-2", 1).time == ahead


def test_the_champion_before(store: FolderStore) -> None:
    for number, version in enumerate(["v1", "v2", "v2", "v3", "v3"]):
        last = promote(store, version, f"run-{number}", number)
    assert champion.champion_before(store, last) == "v2"
    before = [champion.champion_before(store, entry) for entry in champion.history(store)]
    assert before == [None, "v1", "v1", "v2", "v2"]


def test_a_copied_entry_is_no_entry(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.put("champion/00000002.json", store.get("champion/00000001.json"))
    with pytest.raises(IntegrityError, match=r"00000002.json: holds entry 1"):
        champion.champion(store)
