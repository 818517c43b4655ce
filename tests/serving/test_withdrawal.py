"""Withdrawing and restoring releases whose files are gone."""

from __future__ import annotations

import pytest

from fmnist_tasks.errors import MissingError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.serving import withdrawal
from tests.support.signed_store import manifest_key, publish


def test_a_pruned_release_can_be_restored(store: FolderStore, caplog: pytest.LogCaptureFixture) -> None:
    publish(store, "v1")
    withdrawn = withdrawal.withdraw(store, "v1", "wrong labels", actor="ann")
    assert withdrawn["manifest_sha256"]
    store.delete(manifest_key("v1"))
    restored = withdrawal.restore(store, "v1", "the labels were right", actor="ann")
    assert (restored["manifest_sha256"], champion.read_log(store).withdrawn) == (None, {})
    assert "the log entry has no manifest digest for v1: there is no release v1" in caplog.text


def test_a_name_of_neither_a_release_nor_a_batch_is_refused(store: FolderStore) -> None:
    for decide in (withdrawal.withdraw, withdrawal.restore):
        with pytest.raises(MissingError, match="there is neither a release nor a batch 'v9'; `fmnist releases` and"):
            decide(store, "v9", "why", actor="ann")
