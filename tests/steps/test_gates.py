"""The gates on a finished run: approvals, comparison with the champion, withdrawn and planted documents."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fmnist_tasks.data.dataset import load_splits
from fmnist_tasks.errors import ConflictError, IntegrityError, RejectedError, SettingsError, TrainingError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.model import h5, training
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.runs import make_run_key, read_record
from fmnist_tasks.schemas.evaluation import ChampionComparison
from fmnist_tasks.schemas.releases import Approval
from fmnist_tasks.serving import withdrawal
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import Parameters
from fmnist_tasks.steps import Run, run_step
from tests.support.pipeline import Pipeline
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

ONE_BYTE_POLICY = {"serving": {"max_bytes": 1}}
NEXT = Run("run-2", "2026-11-30T02:00:00+00:00", replace(RUN.parameters, seed=1))


def make_response(
    user: str | None = "admin", reason: str | None = "it is small enough", at: str = ""
) -> dict[str, Any]:
    """A response that approves, as Airflow's ApprovalOperator returns it; by default, at this moment."""
    return {
        "chosen_options": ["Approve"],
        "responded_by_user": user and {"id": "1", "name": user},
        "responded_at": at or datetime.now(UTC).isoformat(),
        "params_input": {"approval_reason": reason},
    }


def make_run(approval: bool, policy: dict[str, Any] = ONE_BYTE_POLICY) -> Run:
    return replace(RUN, parameters=replace(RUN.parameters, approval=approval, policy=policy))


def test_every_check_is_in_the_verdict_the_report_the_manifest_and_the_log(
    finished_pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        verdict = run_step("promotion_gate", RUN)
    names = [check.name for check in verdict.checks]
    assert names == [
        "identity",
        "accuracy",
        "champion",
        "class recall",
        "class recall against champion",
        "calibration",
        *(f"{family}, {metric}" for family in read_policy({}).ood.families for metric in ("AUROC", "FPR at 99% TPR")),
        "latency",
        "load time",
        "size",
        "withdrawn releases",
    ]
    report = finished_pipeline.store.get(make_run_key(RUN.id, "report.html")).decode()
    manifest = open_release(finished_pipeline.store, require_champion(finished_pipeline.store).version).manifest
    assert [check.name for check in manifest.verdict.checks] == names
    assert (manifest.policy, manifest.policy_digest) == (verdict.policy, verdict.policy_digest)
    for check in verdict.checks:
        assert check.outcome == "passed"
        assert f"candidate, {check.name}: passed, {check.message}" in caplog.text
        assert f"<td>{check.name}</td>" in report


def test_the_report_is_self_contained_and_the_model_card_has_the_threshold_and_the_origin(
    finished_pipeline: Pipeline,
) -> None:
    report = finished_pipeline.store.get(make_run_key(RUN.id, "report.html")).decode()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)""", report)
    assert {address.partition(",")[0] for pair in addresses for address in pair if address} == {
        "data:image/png;base64",
        "data_docs/index.html",  # the only link to another file
    }
    release = open_release(finished_pipeline.store, require_champion(finished_pipeline.store).version)
    card, manifest = release.files["model_card.md"].decode(), release.manifest
    assert f"above **{manifest.ood_threshold:.6f}**" in card
    for fact in (manifest.version, manifest.run_id, manifest.model_sha256, manifest.dataset.fingerprint):
        assert fact in card
    assert all(f"| {name} |" in card for name in manifest.classes)


def test_a_candidate_on_hold_is_rejected_if_approval_is_off(finished_pipeline: Pipeline) -> None:
    message = r"candidate rejected, since size \(bytes\) is .*, above the threshold of 1\."
    with pytest.raises(RejectedError, match=message):
        run_step("promotion_gate", make_run(approval=False))
    assert read_record(finished_pipeline.store, RUN.id, "promotion_gate").status == "rejected"
    assert finished_pipeline.read_result("promotion_gate").decision == "hold"


def test_a_candidate_on_hold_is_published_only_with_an_approval(finished_pipeline: Pipeline) -> None:
    run = replace(make_run(approval=True), created="2026-11-24T02:00:00+00:00")
    assert run_step("promotion_gate", run).decision == "hold"
    responses: list[dict[str, list[str]] | None] = [None, {"chosen_options": ["Reject"]}, {"chosen_options": []}]
    for response in responses:
        with pytest.raises(ConflictError, match=r"its decision is hold, without an approval; nothing is published"):
            run_step("publish", run, approval=response)
    with pytest.raises(SettingsError, match="a reason is required"):
        run_step("publish", run, approval=make_response(reason=None))
    response = make_response(user=None)
    version = run_step("publish", run, approval=response).version
    verdict = releases.read_manifest(finished_pipeline.store, version).verdict
    assert verdict.decision == "hold"
    assert verdict.approval == Approval(by="an unknown user", at=response["responded_at"], reason="it is small enough")


def test_an_approval_counts_only_for_the_verdict_that_the_user_saw(finished_pipeline: Pipeline) -> None:
    run = make_run(approval=True)
    run_step("promotion_gate", run)
    decided = datetime.fromisoformat(read_record(finished_pipeline.store, run.id, "promotion_gate").started)
    earlier = (decided - timedelta(hours=1)).isoformat()
    with pytest.raises(ConflictError, match=r"admin approved at .*, before the promotion gate decided again"):
        run_step("publish", run, approval=make_response(at=earlier))


def test_a_release_is_promoted_only_on_the_verdict_with_which_it_was_published(finished_pipeline: Pipeline) -> None:
    """A cleared gate may decide otherwise, for example because latency is measured again."""
    finished_pipeline.clear_champion_log()
    first = run_step("publish", RUN).version
    run = make_run(approval=True)
    run_step("promotion_gate", run)
    with pytest.raises(ConflictError, match="the promotion gate has decided again since release"):
        run_step("promote", run)
    assert champion.find_champion(finished_pipeline.store) is None
    response = make_response()
    version = run_step("publish", run, approval=response).version
    assert version == f"{first}.2"
    assert run_step("publish", run, approval=response).version == version  # a retry
    run_step("verify_release", run)
    run_step("promote", run)
    entry = require_champion(finished_pipeline.store)
    assert (entry.version, entry.actor, entry.reason) == (
        version,
        "admin",
        f"run {RUN.id} was approved: it is small enough",
    )


@pytest.mark.parametrize("changes", [{"policy": {"serving": {"max_bytes": 1}}}, {"accuracy_threshold": 0.5}])
def test_a_verdict_by_another_policy_publishes_nothing(finished_pipeline: Pipeline, changes: dict[str, Any]) -> None:
    run = replace(RUN, parameters=replace(RUN.parameters, **changes))
    with pytest.raises(RejectedError, match=r"promotion_gate of run .* was run with a different"):
        run_step("publish", run)


def test_an_approval_does_not_publish_a_candidate_that_repeats_a_withdrawn_release(finished_pipeline: Pipeline) -> None:
    first = require_champion(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    withdrawal.withdraw(finished_pipeline.store, first, "its labels were wrong", actor="ann")
    verdict = run_step("promotion_gate", make_run(approval=True, policy={}))
    assert verdict.decision == "hold"
    assert (
        f"the candidate is the model of release {first}, or comes from the same data, code and parameters, and that"
        in verdict.summary
    )
    with pytest.raises(RejectedError, match=rf"the candidate is the model of release {first}"):
        run_step("publish", RUN, approval=make_response())


def test_an_approval_does_not_publish_a_rejected_candidate(finished_pipeline: Pipeline) -> None:
    finished_pipeline.change_result("promotion_gate", decision="reject")
    with pytest.raises(ConflictError, match=r"its decision is reject"):
        run_step("publish", RUN, approval=make_response())


def test_the_next_candidate_is_compared_with_the_champion(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = {"accuracy": {"min": 0.5}}
    finished_pipeline.promote_second_release(policy=read_policy(accuracy), ood_threshold=-1_000.0)
    replay_steps(monkeypatch, finished_pipeline.store, names=("train", "fine_tune"))
    before = require_champion(finished_pipeline.store)
    finished_pipeline.run_until("promotion_gate", NEXT)
    verdict = finished_pipeline.read_result("promotion_gate", NEXT)
    assert isinstance(verdict.champion, ChampionComparison)
    assert (verdict.champion.version, verdict.champion.sequence) == (before.version, before.sequence)
    (check,) = (check for check in verdict.checks if check.name == "champion")
    assert "no significant difference" in check.message
    run_step("publish", NEXT)
    run_step("verify_release", NEXT)
    run_step("promote", NEXT)
    assert len(champion.list_entries(finished_pipeline.store)) == 3


def test_a_record_of_an_earlier_version_stops_the_run(finished_pipeline: Pipeline) -> None:
    store, key = finished_pipeline.store, make_run_key(RUN.id, "evaluate_tuned.json")
    earlier = read_record(store, RUN.id, "evaluate_tuned").to_json()
    del earlier["schema_version"]
    store.put(key, store.keys.encode(key, "run-record", earlier))
    with pytest.raises(IntegrityError, match=rf"{key} has schema version 1, not 3: version 0.1 of this project wrote"):
        run_step("promotion_gate", RUN)


def test_a_champion_of_an_earlier_version_stops_the_run(finished_pipeline: Pipeline) -> None:
    store, version = finished_pipeline.store, require_champion(finished_pipeline.store).version
    key = f"releases/{version}/manifest.json"
    earlier = {**releases.read_manifest(store, version).to_json(), "schema_version": 1}
    store.put(key, store.keys.encode(key, "manifest", earlier))
    champion.append_entry(
        store,
        version=version,
        action="promote",
        reason="as 0.1 wrote it",
        write_id="w",
        after=1,
        manifest_sha256=hashlib.sha256(store.get(key)).hexdigest(),
    )
    with pytest.raises(IntegrityError, match=rf"{key} has schema version 1, not 3: version 0.1 of this project wrote"):
        run_step("detect_change", RUN)


def test_the_threshold_accepts_99_percent_of_the_validation_images(finished_pipeline: Pipeline) -> None:
    release = open_release(finished_pipeline.store, require_champion(finished_pipeline.store).version)
    images = load_splits(finished_pipeline.store, release.manifest.dataset).validation_images
    _, ood_scores = h5.predict(release.model, images)
    accepted = (ood_scores <= release.manifest.ood_threshold).mean()
    assert accepted == pytest.approx(0.99, abs=1 / len(ood_scores))


def test_an_invalid_policy_fails_the_run_in_ingest(pipeline: Pipeline) -> None:
    run = Run("run-1", RUN.created, Parameters(policy={"accuracy": {"min": 92}}))
    with pytest.raises(SettingsError, match=r"accuracy.min: Input should be less than or equal to 1"):
        run_step("ingest", run)


def test_a_planted_report_of_last_week_publishes_nothing_when_training_fails(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ingest", "validate_data", "detect_change"):
        run_step(name, NEXT)
    for stat in finished_pipeline.store.list(f"runs/{RUN.id}/"):
        key = stat.key.replace(RUN.id, NEXT.id, 1)
        if finished_pipeline.store.stat(key) is None:
            finished_pipeline.store.put(key, finished_pipeline.store.get(stat.key))

    def fail(*arguments: object) -> None:
        raise TrainingError("loss is nan")

    monkeypatch.setattr(training, "train_model", fail)
    with pytest.raises(TrainingError):
        run_step("train", NEXT)
    before = releases.list_versions(finished_pipeline.store)
    for name in ("publish", "accuracy_gate", "promotion_gate"):
        with pytest.raises(
            IntegrityError, match=r"is the record of step \w+ of run run-1, so it was copied or renamed"
        ):
            run_step(name, NEXT)
    assert releases.list_versions(finished_pipeline.store) == before
    assert len(champion.list_entries(finished_pipeline.store)) == 1
