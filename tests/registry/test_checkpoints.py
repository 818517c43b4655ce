"""Checkpoints: the newest good one of the same training is found, whatever happened to the others."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from fmnist_tasks.errors import StoreError
from fmnist_tasks.registry import checkpoints
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.registry.store import Store

IDENTITY = {"data": "d1", "code": "c1", "recipe": {"filters": (3, 4)}, "seed": 0}
STATES = [np.random.default_rng(number).bytes(3000) for number in range(4)]
KEY = "checkpoints/run-1/base-0/000003"


def training(store: Store) -> Checkpoints:
    return Checkpoints(store, "run-1", "base-0", IDENTITY)


def saved(store: Store) -> Checkpoints:
    """A training that has saved three states."""
    new = training(store)
    for number in (1, 2, 3):
        new.save(number, STATES[number])
    return new


def test_the_newest_state_is_found_and_only_the_last_two_are_kept(store_of_each_kind: Store) -> None:
    assert training(store_of_each_kind).latest() is None
    saved(store_of_each_kind)
    assert training(store_of_each_kind).latest() == STATES[3]
    assert [stat.key for stat in store_of_each_kind.list("checkpoints/")] == [KEY.replace("3", "2"), KEY]
    checkpoints.clear(store_of_each_kind, "run-1")
    assert training(store_of_each_kind).latest() is None
    assert list(store_of_each_kind.list("checkpoints/")) == []


def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    whole, chance = saved(store).store.get(KEY), np.random.default_rng(0)
    damaged = [whole[:offset] for offset in chance.choice(len(whole), 50, replace=False)]
    for bit in chance.choice(8 * len(whole), 50, replace=False):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        caplog.clear()
        store.put(KEY, data)
        with caplog.at_level(logging.INFO):
            assert training(store).latest() == STATES[2]
        assert caplog.messages == [
            f"{KEY}: a checkpoint that was changed or cut short; the one before it is tried",
            f"going on from {KEY.replace('3', '2')}",
        ]
    assert len(damaged) == 100


@pytest.mark.parametrize("other", [{"data": "d2"}, {"code": "c2"}, {"recipe": {"filters": (3, 5)}}, {"seed": 1}])
def test_a_checkpoint_of_other_data_code_or_recipe_is_not_taken(
    store: FolderStore, caplog: pytest.LogCaptureFixture, other: dict[str, object]
) -> None:
    saved(store)
    changed = replace(training(store), identity=IDENTITY | other)
    assert changed.latest() is None
    assert caplog.messages == [
        f"{key}: a checkpoint of another run, data, code or recipe; it is not used"
        for key in (KEY, KEY.replace("3", "2"))
    ]
    changed.save(1, STATES[0])
    assert changed.latest() == STATES[0]


def test_the_order_in_which_an_identity_is_written_down_does_not_matter(store: FolderStore) -> None:
    saved(store)
    assert replace(training(store), identity=dict(reversed(IDENTITY.items()))).latest() == STATES[3]


def test_a_checkpoint_is_a_digest_a_line_of_json_and_the_state(store: FolderStore) -> None:
    """A training that was begun by an earlier version of this project, or is ended by a later one, goes on."""
    header = json.dumps({"identity": IDENTITY, "key": KEY}, sort_keys=True).encode()
    content = header + b"\n" + b"two\nlines"
    store.put(KEY, hashlib.sha256(content).digest() + content)
    assert training(store).latest() == b"two\nlines"


def test_a_training_that_begins_again_removes_what_the_former_one_left(store: FolderStore) -> None:
    saved(store)
    training(store).save(1, STATES[0])
    assert [stat.key for stat in store.list("checkpoints/")] == [KEY.replace("3", "1")]
    training(store).save(2, STATES[2])
    assert [stat.key for stat in store.list("checkpoints/")] == [KEY.replace("3", "1"), KEY.replace("3", "2")]


def test_clearing_a_run_leaves_the_checkpoints_of_the_others(store: FolderStore) -> None:
    saved(store)
    for run, name in (("run-1", "tuned"), ("run-10", "base-0")):
        replace(training(store), run_id=run, training=name).save(1, STATES[1])
    checkpoints.clear(store, "run-1")
    assert [stat.key for stat in store.list("checkpoints/")] == ["checkpoints/run-10/base-0/000001"]


def test_a_checkpoint_of_another_run_or_place_is_not_taken(store: FolderStore) -> None:
    saved(store)
    for run, name in (("run-2", "base-0"), ("run-1", "base-1")):
        assert replace(training(store), run_id=run, training=name).latest() is None
        store.put(f"checkpoints/{run}/{name}/000003", store.get(KEY))
        assert replace(training(store), run_id=run, training=name).latest() is None
    store.put(KEY.replace("3", "4"), store.get(KEY))
    assert training(store).latest() == STATES[3]


def test_a_store_that_does_not_answer_costs_the_checkpoint_not_the_training(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(key: str, data: bytes) -> None:
        raise StoreError("the store is away")

    current = saved(store)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(store, "put", fails)
        current.save(4, STATES[0])
    assert caplog.messages == ["checkpoint 4 was not kept, training goes on: the store is away"]
    assert training(store).latest() == STATES[3]
