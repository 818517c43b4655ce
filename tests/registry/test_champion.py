from __future__ import annotations

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.local import FolderStore


def promote(store: FolderStore, version: str, writer: str, expected: str | None) -> champion.Entry:
    return champion.append(store, version=version, action="promote", reason="why", write_id=writer, expected=expected)


def test_the_highest_entry_is_the_champion(store: FolderStore) -> None:
    assert champion.champion(store) is None
    promote(store, "v1", "run-1", None)
    last = promote(store, "v2", "run-2", "v1")
    assert champion.champion(store) == last
    assert [(entry.sequence, entry.version) for entry in champion.history(store)] == [(1, "v1"), (2, "v2")]


def test_a_writer_that_comes_again_finds_its_entry(store: FolderStore) -> None:
    first = promote(store, "v1", "run-1", None)
    promote(store, "v2", "run-2", "v1")
    assert promote(store, "v1", "run-1", None) == first
    assert len(champion.history(store)) == 2


def test_a_champion_that_changed_since_it_was_read_is_not_replaced(store: FolderStore) -> None:
    promote(store, "v1", "run-1", None)
    promote(store, "v2", "run-2", "v1")
    with pytest.raises(ConflictError, match=r"no longer v1.*v3 is not promoted"):
        promote(store, "v3", "run-3", "v1")
    with pytest.raises(ConflictError, match=r"no longer unset"):
        promote(store, "v3", "run-3", None)
    assert len(champion.history(store)) == 2


def test_a_writer_that_loses_the_race_for_a_sequence_is_told(store: FolderStore) -> None:
    class Slow(FolderStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            promote(store, "v1", "run-1", None)  # another run is a moment faster
            return super().put_if_absent(key, data)

    with pytest.raises(ConflictError, match=r"v2 is not promoted"):
        promote(Slow(store.root), "v2", "run-2", None)
    assert [entry.version for entry in champion.history(store)] == ["v1"]


def test_a_copied_entry_is_no_entry(store: FolderStore) -> None:
    promote(store, "v1", "run-1", None)
    store.put("champion/00000002.json", store.get("champion/00000001.json"))
    with pytest.raises(IntegrityError, match=r"00000002.json: holds entry 1"):
        champion.champion(store)
