"""Checkpoints: training resumes from its newest intact checkpoint, whatever happened to the others."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks.errors import StoreError
from fmnist_tasks.registry import checkpoints
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.store import Store
from tests.support.signed_store import make_signing_keys

IDENTITY = {"data": "d1", "code": "c1", "recipe": {"filters": (3, 4)}, "seed": 0}
STATES = [np.random.default_rng(number).bytes(3000) for number in range(4)]
KEY = "checkpoints/run-1/base-0/000003"


def make_checkpoints(store: Store) -> Checkpoints:
    return Checkpoints(store, "run-1", "base-0", IDENTITY)


def save_three(store: Store) -> Checkpoints:
    """Save three states, as training does."""
    training = make_checkpoints(store)
    for number in (1, 2, 3):
        training.save(number, STATES[number])
    return training


def test_the_newest_state_is_loaded_and_only_the_last_two_are_stored(store_of_each_kind: Store) -> None:
    assert make_checkpoints(store_of_each_kind).load_latest() is None
    save_three(store_of_each_kind)
    assert make_checkpoints(store_of_each_kind).load_latest() == STATES[3]
    assert [stat.key for stat in store_of_each_kind.list("checkpoints/")] == [KEY.replace("3", "2"), KEY]
    checkpoints.delete_checkpoints(store_of_each_kind, "run-1")
    assert make_checkpoints(store_of_each_kind).load_latest() is None
    assert list(store_of_each_kind.list("checkpoints/")) == []


def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    intact, random = save_three(store).store.get(KEY), np.random.default_rng(0)
    damaged = [intact[:offset] for offset in random.choice(len(intact), 50, replace=False)]
    for bit in random.choice(8 * len(intact), 50, replace=False):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        caplog.clear()
        store.put(KEY, data)
        with caplog.at_level(logging.INFO):
            assert make_checkpoints(store).load_latest() == STATES[2]
        assert caplog.messages == [
            f"{KEY}: this checkpoint was changed or truncated; trying the one before it",
            f"resuming from {KEY.replace('3', '2')}",
        ]
    assert len(damaged) == 100


@pytest.mark.parametrize("other", [{"data": "d2"}, {"code": "c2"}, {"recipe": {"filters": (3, 5)}}, {"seed": 1}])
def test_a_checkpoint_of_other_data_code_or_recipe_is_not_used(
    store: FolderStore, caplog: pytest.LogCaptureFixture, other: dict[str, object]
) -> None:
    save_three(store)
    training = replace(make_checkpoints(store), identity=IDENTITY | other)
    assert training.load_latest() is None
    assert caplog.messages == [
        f"{key}: this checkpoint belongs to another run, or to other data, code or hyperparameters; it is not used"
        for key in (KEY, KEY.replace("3", "2"))
    ]
    training.save(1, STATES[0])
    assert training.load_latest() == STATES[0]


def test_the_order_of_an_identity_does_not_matter(store: FolderStore) -> None:
    save_three(store)
    assert replace(make_checkpoints(store), identity=dict(reversed(IDENTITY.items()))).load_latest() == STATES[3]


def test_a_checkpoint_is_a_digest_a_line_of_json_and_the_state(store: FolderStore) -> None:
    """The format is fixed, so training resumes after an upgrade or a downgrade of this project."""
    header = json.dumps({"identity": IDENTITY, "key": KEY}, sort_keys=True).encode()
    content = header + b"\n" + b"two\nlines"
    store.put(KEY, hashlib.sha256(content).digest() + content)
    assert make_checkpoints(store).load_latest() == b"two\nlines"


def test_a_training_that_starts_again_deletes_its_earlier_checkpoints(store: FolderStore) -> None:
    save_three(store)
    make_checkpoints(store).save(1, STATES[0])
    assert [stat.key for stat in store.list("checkpoints/")] == [KEY.replace("3", "1")]
    make_checkpoints(store).save(2, STATES[2])
    assert [stat.key for stat in store.list("checkpoints/")] == [KEY.replace("3", "1"), KEY.replace("3", "2")]


def test_with_keys_only_a_checkpoint_with_a_valid_signature_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forged: unsigned, signed with an unknown key, and the signature of another state."""
    keys = make_signing_keys()
    store, forger = FolderStore(tmp_path, keys), FolderStore(tmp_path, make_signing_keys())
    save_three(store)
    intact, previous = store.get(KEY), store.get(KEY.replace("3", "2"))
    assert make_checkpoints(store).load_latest() == STATES[3]
    save_three(FolderStore(tmp_path))
    unsigned = store.get(KEY)
    save_three(forger)
    foreign = store.get(KEY)
    mixed = intact[:32] + previous[32:96] + intact[96:]
    store.put(KEY.replace("3", "2"), previous)
    for forged in (unsigned, foreign, mixed):
        caplog.clear()
        store.put(KEY, forged)
        assert make_checkpoints(store).load_latest() == STATES[2]
        assert caplog.messages[0] == f"{KEY}: this checkpoint has no valid signature; trying the one before it"
    store.put(KEY, intact)
    assert make_checkpoints(store).load_latest() == STATES[3]


def test_deleting_the_checkpoints_of_a_run_leaves_those_of_others(store: FolderStore) -> None:
    save_three(store)
    for run, name in (("run-1", "tuned"), ("run-10", "base-0")):
        replace(make_checkpoints(store), run_id=run, training=name).save(1, STATES[1])
    checkpoints.delete_checkpoints(store, "run-1")
    assert [stat.key for stat in store.list("checkpoints/")] == ["checkpoints/run-10/base-0/000001"]


def test_a_checkpoint_of_another_run_or_training_is_not_used(store: FolderStore) -> None:
    save_three(store)
    for run, name in (("run-2", "base-0"), ("run-1", "base-1")):
        assert replace(make_checkpoints(store), run_id=run, training=name).load_latest() is None
        store.put(f"checkpoints/{run}/{name}/000003", store.get(KEY))
        assert replace(make_checkpoints(store), run_id=run, training=name).load_latest() is None
    store.put(KEY.replace("3", "4"), store.get(KEY))
    assert make_checkpoints(store).load_latest() == STATES[3]


def test_a_store_that_does_not_respond_costs_a_checkpoint_not_the_training(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str, data: bytes) -> None:
        raise StoreError("the store is down")

    training = save_three(store)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(store, "put", fail)
        training.save(4, STATES[0])
    assert caplog.messages == ["checkpoint 4 was not saved; training continues: the store is down"]
    assert training.load_latest() == STATES[3]
