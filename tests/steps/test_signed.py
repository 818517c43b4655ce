"""Runs, rollbacks and predictions on a store that is signed, and what happens to them without the right key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmnist_tasks import memory, service
from fmnist_tasks.errors import FmnistError, IntegrityError, SettingsError
from fmnist_tasks.page.asking import Oracle
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.audit import audit
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.keys import make_keys
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.steps import run_again
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.signed_store import replace_keys
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

SECOND = replace(
    RUN, id="second-week", created="2026-11-30T02:00:00+00:00", parameters=replace(RUN.parameters, force=True)
)


@pytest.fixture
def signed_pipeline(finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline with an unsigned champion, on which signing has been turned on."""
    pem, trusted = make_keys(None, champion.read_log(finished_pipeline.store).digests, revoke_earlier=False)
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
    monkeypatch.setenv("FMNIST_SIGNING_KEY", pem)
    replay_steps(monkeypatch, finished_pipeline.store)
    return finished_pipeline


def open_again(pipeline: Pipeline) -> Store:
    return open_store(pipeline.environment["FMNIST_STORE"])


def test_runs_and_rollbacks_are_signed_and_verified_from_the_first_key_on(
    signed_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_again(signed_pipeline)
    first = service.in_service(store).version
    signed_pipeline.run_until("promote", SECOND)
    second = service.in_service(store).version
    assert second != first
    service.rollback(store, first, "the second is bad", actor="ann")
    signatures = [store.keys.describe(entry.signed_by).split()[0] for entry in champion.history(store)]
    assert signatures == ["unsigned", "signed", "signed"]
    assert service.verify(store, first)["signature"] == "unsigned"
    assert service.verify(store, second)["signature"].startswith("signed by key ")
    assert audit(store)["signed_entries"] == 2

    # Whoever may write, but has no key, changes the champion's classes and gives the manifest a seal that is right.
    key = f"releases/{second}/manifest.json"
    service.rollback(store, second, "it was good after all", actor="ann")
    manifest = releases.read_manifest(store, second)
    store.put(key, Keys().encode(key, "manifest", {**manifest, "classes": manifest["classes"][::-1]}))
    before = champion.history(store)
    for use in (
        lambda: service.open_release(store, second),
        lambda: Oracle(store).samples(),
        lambda: service.rollback(store, first, "r", actor="ann"),
        lambda: run_again("detect_change", SECOND),
        lambda: run_again("evaluate_tuned", replace(SECOND, id="third")),
        lambda: audit(store),
    ):
        with pytest.raises(FmnistError):
            use()
    assert champion.history(store) == before


@pytest.mark.parametrize(("last", "following"), [("publish", "verify_release"), ("verify_release", "promote")])
def test_a_manifest_that_is_replaced_before_promotion_is_not_promoted(
    signed_pipeline: Pipeline, last: str, following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even without keys."""
    for name in ("FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY"):
        monkeypatch.delenv(name)
    signed_pipeline.run_until(last, SECOND)
    store = open_again(signed_pipeline)
    version = read_record(store, SECOND.id, "publish")["result"]["version"]
    manifest = releases.read_manifest(store, version)
    store.put(
        f"releases/{version}/manifest.json", Keys().encode("", "manifest", {**manifest, "novelty_threshold": -1e9})
    )
    before = champion.history(store)
    with pytest.raises(IntegrityError, match=rf"the manifest of release {version} is not the one that was published"):
        run_again(following, SECOND)
    assert champion.history(store) == before


@pytest.mark.parametrize("kept", ["FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY", "neither"])
def test_a_lost_key_stops_a_run_before_training_and_the_champion_stays(
    signed_pipeline: Pipeline, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_pipeline.run_until("promote", SECOND)
    before = champion.history(open_again(signed_pipeline))
    for name in {"FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY"} - {kept}:
        monkeypatch.delenv(name)
    third = replace(SECOND, id="third-week")
    with pytest.raises(SettingsError, match=r"FMNIST_SIGNING_KEY"):
        signed_pipeline.run_until("train", third)
    monkeypatch.delenv("FMNIST_SIGNING_KEY", raising=False)
    store = open_again(signed_pipeline)
    assert store.stat("runs/third-week/train-0.json") is None
    assert [entry.as_document() for entry in champion.history(store)] == [entry.as_document() for entry in before]


def test_records_and_checkpoints_that_the_publisher_planted_are_not_used(
    signed_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both could be made with the rights to write the store alone, and decide what is signed."""
    signed_pipeline.run_until("promotion_gate", SECOND)
    store = open_again(signed_pipeline)
    verdict = read_record(store, SECOND.id, "promotion_gate")
    before = champion.history(store)
    planted = {name: value for name, value in verdict.items() if name not in {"run_id", "step"}}
    write_record(replace_keys(store, Keys()), SECOND.id, "promotion_gate", planted)
    with pytest.raises(IntegrityError, match=r"promotion_gate.json: is unsigned, so nothing shows that a step"):
        run_again("publish", SECOND)
    write_record(store, SECOND.id, "promotion_gate", planted)
    pem, trusted = make_keys(store.keys.trusted, champion.read_log(store).digests, revoke_earlier=True)
    with monkeypatch.context() as rotated:
        rotated.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
        rotated.setenv("FMNIST_SIGNING_KEY", pem)
        with pytest.raises(IntegrityError, match=r"\.json: is signed by a revoked key, so nothing shows that a step"):
            run_again("publish", SECOND)
    assert champion.history(store) == before

    identity = {"data": "d"}
    theirs = Checkpoints(replace_keys(store, Keys()), "third", "base-0", identity)
    theirs.save(4, b"planted")
    ours = Checkpoints(store, "third", "base-0", identity)
    assert (theirs.latest(), ours.latest()) == (b"planted", None)
    ours.save(5, b"state")
    assert ours.latest() == b"state"
    theirs.save(6, b"planted")
    assert ours.latest() == b"state"


def test_a_record_that_somebody_planted_costs_the_report_and_no_step(
    signed_pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_again(signed_pipeline)
    before = memory.read_peak_memory()
    for number in range(8):
        store.put(f"runs/{SECOND.id}/planted-{number}.json", b"[" + b"{}," * (MAX_BYTES // 3 - 9) + b"{}]")
    signed_pipeline.run_until("ingest", SECOND)
    assert read_record(store, SECOND.id, "ingest")["status"] == "done"
    assert "ingest: the report could not be written: runs/second-week/planted-0.json: is unsigned" in caplog.text
    assert memory.read_peak_memory() - before < 200
