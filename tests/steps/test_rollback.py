"""A rollback on a finished run: what it requires of the release, and of whoever asks for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from fmnist_tasks import service, withdrawal
from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError, ModelError, RejectedError, SettingsError
from fmnist_tasks.model import h5
from fmnist_tasks.registry import champion, pruning, releases
from fmnist_tasks.registry.store import Store
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration


def publish_copy(pipeline: Pipeline, version: str, model: bytes | None = None, **facts: Any) -> None:
    """Another release with the champion's files and facts, except for these."""
    release = service.open_release(pipeline.store, service.in_service(pipeline.store).version)
    files = release.files if model is None else {**release.files, "model.h5": model}
    kept = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
    releases.publish(pipeline.store, version, files, kept | facts)


def roll_back(pipeline: Pipeline, version: str, **more: Any) -> champion.Entry:
    return service.rollback(pipeline.store, version, "the champion is bad", actor="ann", **more)


@pytest.mark.parametrize(
    ("value", "told"),
    [(np.nan, r"the predictions for 600 of 600 test images are not finite"), (0.0, r"test accuracy is .*its manifest")],
)
def test_a_release_that_does_not_answer_as_its_manifest_says_never_becomes_the_champion(
    finished_pipeline: Pipeline, value: float, told: str
) -> None:
    """Such a release exists after a failed `verify_release`, and is then the newest in every list."""
    before = champion.history(finished_pipeline.store)
    model = service.open_release(finished_pipeline.store, before[-1].version).model
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.full(kernel.shape, value, np.float32))
    publish_copy(finished_pipeline, "spoilt", h5.save(model))
    with pytest.raises(ModelError, match=rf"release spoilt: {told}"):
        service.verify(finished_pipeline.store, "spoilt")
    with pytest.raises(RejectedError, match=r"it has never been the champion"):
        roll_back(finished_pipeline, "spoilt")
    with pytest.raises(ModelError, match=rf"release spoilt: {told}"):
        roll_back(finished_pipeline, "spoilt", force=True)
    assert champion.history(finished_pipeline.store) == before


def test_nothing_is_pruned_while_a_rollback_looks_at_the_release(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_copy(finished_pipeline, "copy")
    verify, refused = service.verify, []

    def verify_and_prune(store: Store, version: str) -> dict[str, Any]:
        found = verify(store, version)
        with pytest.raises(ConflictError, match="rollback to copy is under way, nothing is deleted") as caught:
            pruning.prune(store, keep=1, older_than=timedelta(days=1))
        refused.append(caught)
        return found

    monkeypatch.setattr(service, "verify", verify_and_prune)
    assert roll_back(finished_pipeline, "copy", force=True).version == "copy"
    assert len(refused) == 1


def test_a_release_with_other_classes_requires_force(finished_pipeline: Pipeline) -> None:
    """Consumers would read other labels from the same positions."""
    manifest = releases.read_manifest(finished_pipeline.store, service.in_service(finished_pipeline.store).version)
    publish_copy(finished_pipeline, "reversed", classes=manifest["classes"][::-1])
    told = r"never been the champion, and its classes are not those of the champion .*; to roll back .* use `fmnist"
    with pytest.raises(RejectedError, match=told):
        roll_back(finished_pipeline, "reversed")
    assert roll_back(finished_pipeline, "reversed", force=True).version == "reversed"


def test_a_champion_that_is_damaged_can_be_rolled_back(finished_pipeline: Pipeline) -> None:
    """That is a good reason for a rollback. Its classes are unknown then, so it takes force, and it is withdrawn."""
    first = service.in_service(finished_pipeline.store)
    second = finished_pipeline.promote_second_release()
    key = f"releases/{second}/manifest.json"
    finished_pipeline.store.put(key, finished_pipeline.store.get(key).replace(b"quick", b"quack"))
    with pytest.raises(RejectedError, match=r"its classes cannot be compared with the champion's"):
        roll_back(finished_pipeline, first.version)
    entry = roll_back(finished_pipeline, first.version, force=True)
    assert entry.replaces == second
    assert list(champion.read_log(finished_pipeline.store).withdrawn) == [second]
    assert service.in_service(finished_pipeline.store) == entry


def test_a_damaged_release_is_refused_with_and_without_force(finished_pipeline: Pipeline) -> None:
    first = service.in_service(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    model = bytearray(finished_pipeline.store.get(f"releases/{first}/model.h5"))
    model[len(model) // 2] ^= 1
    finished_pipeline.store.put(f"releases/{first}/model.h5", bytes(model))
    for force in (False, True):
        with pytest.raises(IntegrityError, match=r"model.h5: found"):
            roll_back(finished_pipeline, first, force=force)


def test_of_two_rollbacks_of_the_same_champion_one_wins(finished_pipeline: Pipeline) -> None:
    first = service.in_service(finished_pipeline.store)
    finished_pipeline.promote_second_release()
    seen = service.in_service(finished_pipeline.store).sequence
    roll_back(finished_pipeline, first.version, after=seen)
    with pytest.raises(ConflictError, match=r"and is .* by entry 3 of the log; nothing was rolled back"):
        roll_back(finished_pipeline, "second", after=seen)


def test_a_promotion_during_a_rollback_is_not_replaced(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = service.in_service(finished_pipeline.store).version, finished_pipeline.promote_second_release()
    publish_copy(finished_pipeline, "third")
    verify = service.verify

    def promote_meanwhile(*arguments: Any) -> dict[str, Any]:
        champion.append(
            finished_pipeline.store, version="third", action="promote", reason="better", write_id="run-3", after=2
        )
        return verify(*arguments)

    monkeypatch.setattr(service, "verify", promote_meanwhile)
    with pytest.raises(
        ConflictError, match=rf"the champion has changed since: it was {second}, and is third by entry 3"
    ):
        roll_back(finished_pipeline, first)
    assert service.in_service(finished_pipeline.store).version == "third"


def test_what_is_no_request_for_a_rollback(finished_pipeline: Pipeline) -> None:
    first = service.in_service(finished_pipeline.store).version
    with pytest.raises(SettingsError, match=r"is the champion already"):
        roll_back(finished_pipeline, first)
    with pytest.raises(SettingsError, match=r"a reason is required"):
        service.rollback(finished_pipeline.store, first, "  ", actor="ann")
    with pytest.raises(MissingError, match=r"there is no release gone"):
        roll_back(finished_pipeline, "gone", force=True)


def test_a_withdrawn_release_is_recognised_after_its_manifest_is_gone(finished_pipeline: Pipeline) -> None:
    """Pruning may delete a withdrawn release; the log keeps what it came from."""
    store, first = finished_pipeline.store, service.in_service(finished_pipeline.store)
    finished_pipeline.promote_second_release()
    withdrawal.withdraw(store, first.version, "its labels were wrong", actor="ann")
    origin = releases.origin_of(releases.read_manifest(store, first.version))
    store.delete(f"releases/{first.version}/manifest.json")
    for candidate in (champion.Origin(origin.model_sha256), champion.Origin("0" * 64, origin.inputs)):
        found = champion.read_log(store).find_withdrawal(candidate)
        assert found
        assert found[0] == first.version
