from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError
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
        with pytest.raises(IntegrityError, match=rf"the champion log has no entry {missing} before it; restore"):
            champion.history(store)
        with contextlib.suppress(IntegrityError):
            assert champion.champion(store) == last
            found += 1
        store.put(key, entry)
    assert 0 < found < 12  # where the search does not look, the gap is not noticed, and does no harm


def test_a_writer_that_comes_again_finds_its_entry(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    assert promote(store, "v1", "run-1", 0) == first
    assert len(champion.history(store)) == 2


def test_a_champion_that_changed_since_it_was_read_is_not_replaced(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    promote(store, "v2", "run-2", 1)
    with pytest.raises(ConflictError, match=r"no longer v1: entry 2 made it v2.*v3 is not promoted"):
        promote(store, "v3", "run-3", 1)
    with pytest.raises(ConflictError, match=r"no longer unset"):
        promote(store, "v3", "run-3", 0)
    assert len(champion.history(store)) == 2


def test_who_was_champion_when(store: FolderStore) -> None:
    start = datetime(2026, 1, 5, 2, tzinfo=UTC)
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
    first = champion.history(store)[0]
    assert champion.champion_before(store, first) is None


def test_a_copied_entry_is_no_entry(store: FolderStore) -> None:
    promote(store, "v1", "run-1", 0)
    store.put("champion/00000002.json", store.get("champion/00000001.json"))
    with pytest.raises(IntegrityError, match=r"00000002.json: holds entry 1"):
        champion.champion(store)
