"""Runs, rollbacks and predictions on a signed store, with and without the correct key."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fmnist_tasks import memory
from fmnist_tasks.data.dataset import load_splits
from fmnist_tasks.errors import DataError, FmnistError, IntegrityError, SettingsError
from fmnist_tasks.page.inference import ChampionPredictor
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.audit import audit_store
from fmnist_tasks.registry.checkpoints import Checkpoints
from fmnist_tasks.registry.documents import MAX_BYTES
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.signing_keys import make_keys
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.serving.release import open_release, require_champion, verify_release
from fmnist_tasks.serving.rollback import roll_back
from fmnist_tasks.steps import run_step
from fmnist_tasks.steps.evaluation import compare_with_champion
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
    """A pipeline with an unsigned champion, for which signing is now on."""
    pem, trusted = make_keys(None, champion.read_log(finished_pipeline.store).digests, revoke_earlier=False)
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
    monkeypatch.setenv("FMNIST_SIGNING_KEY", pem)
    replay_steps(monkeypatch, finished_pipeline.store)
    return finished_pipeline


def open_with_keys(pipeline: Pipeline) -> Store:
    return open_store(pipeline.environment["FMNIST_STORE"])


def test_runs_and_rollbacks_are_signed_and_verified_from_the_first_key_on(
    signed_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_with_keys(signed_pipeline)
    first = require_champion(store).version
    signed_pipeline.run_until("promote", SECOND)
    second = require_champion(store).version
    assert second != first
    roll_back(store, first, "the second is worse", actor="ann")
    signatures = [store.keys.describe(entry.signed_by).split()[0] for entry in champion.list_entries(store)]
    assert signatures == ["unsigned", "signed", "signed"]
    assert verify_release(store, first)["signature"] == "unsigned"
    assert verify_release(store, second)["signature"].startswith("signed by key ")
    assert audit_store(store)["signed_entries"] == 2

    # A writer without a key changes the champion's classes and gives the manifest a correct seal.
    key = f"releases/{second}/manifest.json"
    roll_back(store, second, "it was good after all", actor="ann")
    manifest = releases.read_manifest(store, second)
    changed = {**manifest.to_json(), "classes": manifest.classes[::-1]}
    store.put(key, Keys().encode(key, "manifest", changed))
    before, arrays = champion.list_entries(store), load_splits(store, manifest.dataset)
    for operation in (
        lambda: open_release(store, second),
        lambda: ChampionPredictor(store).predict_examples(),
        lambda: roll_back(store, first, "r", actor="ann"),
        lambda: run_step("detect_change", SECOND),
        lambda: compare_with_champion(store, manifest.classes, arrays, np.empty(0), 1.0),  # as evaluate_tuned does
        lambda: audit_store(store),
    ):
        with pytest.raises(FmnistError):
            operation()
    assert champion.list_entries(store) == before


@pytest.mark.parametrize(("last", "following"), [("publish", "verify_release"), ("verify_release", "promote")])
def test_a_manifest_that_is_replaced_before_promotion_is_not_promoted(
    signed_pipeline: Pipeline, last: str, following: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds without keys too."""
    for name in ("FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY"):
        monkeypatch.delenv(name)
    signed_pipeline.run_until(last, SECOND)
    store = open_with_keys(signed_pipeline)
    version = signed_pipeline.read_result("publish", SECOND).version
    changed = {**releases.read_manifest(store, version).to_json(), "ood_threshold": 1e9}
    store.put(f"releases/{version}/manifest.json", Keys().encode("", "manifest", changed))
    before = champion.list_entries(store)
    with pytest.raises(IntegrityError, match=rf"the manifest of release {version} is not the one that was published"):
        run_step(following, SECOND)
    assert champion.list_entries(store) == before


@pytest.mark.parametrize("remaining", ["FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY", "neither"])
def test_a_lost_key_stops_a_run_before_training_and_the_champion_stays(
    signed_pipeline: Pipeline, remaining: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_pipeline.run_until("promote", SECOND)
    before = champion.list_entries(open_with_keys(signed_pipeline))
    for name in {"FMNIST_TRUSTED_KEYS", "FMNIST_SIGNING_KEY"} - {remaining}:
        monkeypatch.delenv(name)
    third = replace(SECOND, id="third-week")
    with pytest.raises(SettingsError, match=r"FMNIST_SIGNING_KEY"):
        signed_pipeline.run_until("train", third)
    monkeypatch.delenv("FMNIST_SIGNING_KEY", raising=False)
    store = open_with_keys(signed_pipeline)
    assert store.stat("runs/third-week/train-0.json") is None
    assert [entry.to_json() for entry in champion.list_entries(store)] == [entry.to_json() for entry in before]


def test_records_and_checkpoints_that_the_publisher_planted_are_not_used(
    signed_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone with write access to the store can forge them, and they determine what is signed."""
    signed_pipeline.run_until("promotion_gate", SECOND)
    store = open_with_keys(signed_pipeline)
    verdict = read_record(store, SECOND.id, "promotion_gate")
    before = champion.list_entries(store)
    write_record(replace_keys(store, Keys()), verdict)
    with pytest.raises(IntegrityError, match=r"promotion_gate.json is unsigned, so nothing shows that a step"):
        run_step("publish", SECOND)
    write_record(store, verdict)
    pem, trusted = make_keys(store.keys.trusted, champion.read_log(store).digests, revoke_earlier=True)
    with monkeypatch.context() as patch:
        patch.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
        patch.setenv("FMNIST_SIGNING_KEY", pem)
        with pytest.raises(IntegrityError, match=r"\.json is signed by a revoked key, so nothing shows that a step"):
            run_step("publish", SECOND)
    assert champion.list_entries(store) == before

    identity = {"data": "d"}
    planted_checkpoints = Checkpoints(replace_keys(store, Keys()), "third", "base-0", identity)
    planted_checkpoints.save(4, b"planted")
    own_checkpoints = Checkpoints(store, "third", "base-0", identity)
    assert (planted_checkpoints.load_latest(), own_checkpoints.load_latest()) == (b"planted", None)
    own_checkpoints.save(5, b"state")
    assert own_checkpoints.load_latest() == b"state"
    planted_checkpoints.save(6, b"planted")
    assert own_checkpoints.load_latest() == b"state"


@pytest.mark.parametrize("count", [3, 8])
def test_planted_records_are_named_in_the_report_or_prevent_it_but_fail_no_step(
    signed_pipeline: Pipeline, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight are so large that no record of the run is read."""
    store = open_with_keys(signed_pipeline)
    before = memory.read_peak_memory()
    for number in range(count):
        store.put(f"runs/{SECOND.id}/planted-{number}.json", b"[" + b"{}," * (MAX_BYTES // 3 - 9) + b"{}]")
    signed_pipeline.run_until("ingest", SECOND)
    assert read_record(store, SECOND.id, "ingest").status == "done"
    (signed_pipeline.data / "test_labels.gz").unlink()
    with pytest.raises(DataError):  # ends the run, so that its report is written
        run_step("ingest", SECOND)
    assert read_record(store, SECOND.id, "ingest").status == "failed"
    report, fault = f"runs/{SECOND.id}/report.html", f"runs/{SECOND.id}/planted-0.json is unsigned"
    if count == 3:
        assert f"Cannot be shown: {fault}".encode() in store.get(report)
    else:
        message = r"could not be written: runs/second-week/\*.json has 33,.* so it was not read"
        assert re.search(f"the report of run {SECOND.id} {message}", caplog.text)
        assert store.stat(report) is None
    assert memory.read_peak_memory() - before < 200
