"""Rollbacks on a finished run: what they require, and what they refuse."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, ModelError, RejectedError, SettingsError
from fmnist_tasks.model import h5
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.serving import rollback, withdrawal
from fmnist_tasks.serving.release import open_release, require_champion, verify_release
from fmnist_tasks.serving.rollback import roll_back
from tests.support.documents import copy_facts
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration


def publish_copy(pipeline: Pipeline, version: str, model: bytes | None = None, **facts: Any) -> None:
    """Publish another release with the champion's files and facts, except for this model and these facts."""
    release = open_release(pipeline.store, require_champion(pipeline.store).version)
    files = release.files if model is None else {**release.files, "model.h5": model}
    releases.publish_release(pipeline.store, version, files, copy_facts(release.manifest, **facts))


def roll_back_to(pipeline: Pipeline, version: str, **options: Any) -> Entry:
    return roll_back(pipeline.store, version, "the champion is bad", actor="ann", **options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"the model's predictions for 600 of 600 images are not finite"),
        (0.0, r"test accuracy is .*its manifest"),
    ],
)
def test_a_release_whose_predictions_contradict_its_manifest_never_becomes_the_champion(
    finished_pipeline: Pipeline, value: float, message: str
) -> None:
    """Such a release exists after a failed `verify_release`, and is the newest one in lists."""
    before = champion.list_entries(finished_pipeline.store)
    model = open_release(finished_pipeline.store, before[-1].version).model
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.full(kernel.shape, value, np.float32))
    publish_copy(finished_pipeline, "invalid", h5.encode_model(model))
    with pytest.raises(ModelError, match=rf"release invalid: {message}"):
        verify_release(finished_pipeline.store, "invalid")
    with pytest.raises(RejectedError, match=r"it has never been the champion"):
        roll_back_to(finished_pipeline, "invalid")
    with pytest.raises(ModelError, match=rf"release invalid: {message}"):
        roll_back_to(finished_pipeline, "invalid", force=True)
    assert champion.list_entries(finished_pipeline.store) == before


def test_nothing_is_pruned_while_a_rollback_verifies_the_release(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_copy(finished_pipeline, "copy")
    verify, refusals = verify_release, []

    def verify_and_prune(store: Store, version: str) -> dict[str, Any]:
        result = verify(store, version)
        with pytest.raises(ConflictError, match="rollback to copy is in progress, so nothing is deleted") as refusal:
            pruning.prune(store, keep=1, older_than=timedelta(days=1))
        refusals.append(refusal)
        return result

    monkeypatch.setattr(rollback, "verify_release", verify_and_prune)
    assert roll_back_to(finished_pipeline, "copy", force=True).version == "copy"
    assert len(refusals) == 1


def test_a_release_with_other_classes_requires_force(finished_pipeline: Pipeline) -> None:
    """Consumers would read other labels from the same positions."""
    manifest = releases.read_manifest(finished_pipeline.store, require_champion(finished_pipeline.store).version)
    publish_copy(finished_pipeline, "reversed", classes=manifest.classes[::-1])
    message = (
        r"never been the champion, and its classes differ from those of the champion .*; to roll back .* use `fmnist"
    )
    with pytest.raises(RejectedError, match=message):
        roll_back_to(finished_pipeline, "reversed")
    assert roll_back_to(finished_pipeline, "reversed", force=True).version == "reversed"


def test_a_champion_that_is_damaged_can_be_rolled_back(finished_pipeline: Pipeline) -> None:
    """Its classes cannot be compared then, so the rollback requires force; the damaged release is withdrawn."""
    first = require_champion(finished_pipeline.store)
    second = finished_pipeline.promote_second_release()
    key = f"releases/{second}/manifest.json"
    finished_pipeline.store.put(key, finished_pipeline.store.get(key).replace(b"quick", b"quack"))
    with pytest.raises(RejectedError, match=r"its classes cannot be compared with the champion's"):
        roll_back_to(finished_pipeline, first.version)
    entry = roll_back_to(finished_pipeline, first.version, force=True)
    assert entry.replaces == second
    assert list(champion.read_log(finished_pipeline.store).withdrawn) == [second]
    assert require_champion(finished_pipeline.store) == entry


def test_a_damaged_release_is_refused_with_and_without_force(finished_pipeline: Pipeline) -> None:
    first = require_champion(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    model = bytearray(finished_pipeline.store.get(f"releases/{first}/model.h5"))
    model[len(model) // 2] ^= 1
    finished_pipeline.store.put(f"releases/{first}/model.h5", bytes(model))
    for force in (False, True):
        with pytest.raises(IntegrityError, match=r"model.h5: found"):
            roll_back_to(finished_pipeline, first, force=force)


def test_of_two_rollbacks_of_the_same_champion_one_succeeds(finished_pipeline: Pipeline) -> None:
    first = require_champion(finished_pipeline.store)
    finished_pipeline.promote_second_release()
    sequence = require_champion(finished_pipeline.store).sequence
    roll_back_to(finished_pipeline, first.version, after=sequence)
    with pytest.raises(ConflictError, match=r"and is now .* \(log entry 3\); nothing was rolled back"):
        roll_back_to(finished_pipeline, "second", after=sequence)


def test_a_promotion_during_a_rollback_is_not_replaced(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (require_champion(finished_pipeline.store).version, finished_pipeline.promote_second_release())
    publish_copy(finished_pipeline, "third")
    verify = verify_release

    def promote_meanwhile(*arguments: Any) -> dict[str, Any]:
        champion.append_entry(
            finished_pipeline.store, version="third", action="promote", reason="better", write_id="run-3", after=2
        )
        return verify(*arguments)

    monkeypatch.setattr(rollback, "verify_release", promote_meanwhile)
    with pytest.raises(
        ConflictError,
        match=rf"the champion has changed in the meantime: it was {second} and is now third \(log entry 3\)",
    ):
        roll_back_to(finished_pipeline, first)
    assert require_champion(finished_pipeline.store).version == "third"


def test_an_invalid_rollback_is_refused(finished_pipeline: Pipeline) -> None:
    first = require_champion(finished_pipeline.store).version
    with pytest.raises(SettingsError, match=r"is already the champion"):
        roll_back_to(finished_pipeline, first)
    with pytest.raises(SettingsError, match=r"a reason is required"):
        roll_back(finished_pipeline.store, first, "  ", actor="ann")
    with pytest.raises(MissingError, match=r"there is no release gone"):
        roll_back_to(finished_pipeline, "gone", force=True)


def test_a_withdrawn_release_is_recognised_after_its_manifest_is_gone(finished_pipeline: Pipeline) -> None:
    """Pruning may delete a withdrawn release; the log keeps its origin."""
    store, first = finished_pipeline.store, require_champion(finished_pipeline.store)
    finished_pipeline.promote_second_release()
    withdrawal.withdraw(store, first.version, "its labels were wrong", actor="ann")
    origin = releases.make_manifest_origin(releases.read_manifest(store, first.version))
    store.delete(f"releases/{first.version}/manifest.json")
    for candidate in (champion.Origin(origin.model_sha256), champion.Origin("0" * 64, origin.inputs)):
        withdrawal_entry = champion.read_log(store).find_withdrawal(candidate)
        assert withdrawal_entry
        assert withdrawal_entry[0] == first.version
