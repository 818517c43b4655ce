"""The gates on a finished run: what is held, what is compared with the champion, what was planted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fmnist_tasks import service, steps, withdrawal
from fmnist_tasks.data.dataset import load
from fmnist_tasks.errors import ConflictError, IntegrityError, RejectedError, SettingsError, TrainingError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.model import h5, training
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.runs import read_record, read_records, run_key
from fmnist_tasks.settings import Parameters
from fmnist_tasks.steps import Run, run_again
from fmnist_tasks.steps.step import build_report
from tests.support.pipeline import Pipeline, write_as_before
from tests.support.replay import replay_steps
from tests.support.synthetic import RUN

pytestmark = pytest.mark.integration

TOO_LARGE = {"speed": {"bytes_at_most": 1}}
NEXT = Run("run-2", "2026-11-30T02:00:00+00:00", replace(RUN.parameters, seed=1))


def results(pipeline: Pipeline, names: tuple[str, ...], run: Run = RUN) -> dict[str, dict]:
    return {name: read_record(pipeline.store, run.id, name)["result"] for name in names}


def asking(approval: bool, policy: dict = TOO_LARGE) -> Run:
    return replace(RUN, parameters=replace(RUN.parameters, approval=approval, policy=policy))


def test_every_check_is_a_row_of_the_verdict_the_report_the_manifest_and_the_log(
    finished_pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        verdict = run_again("promotion_gate", RUN)
    names = [row["name"] for row in verdict["checks"]]
    assert names == [
        "bound to its run",
        "accuracy",
        "champion",
        "recall of each class",
        "classes against champion",
        "calibration",
        *(
            f"{family}, {figure}"
            for family in read_policy({}).novelty.families
            for figure in ("AUROC", "FPR at 99 % TPR")
        ),
        "the same bytes",
        "one image",
        "loading",
        "size",
        "withdrawn releases",
    ]
    report = finished_pipeline.store.get(run_key(RUN.id, "report.html")).decode()
    manifest = service.open_release(
        finished_pipeline.store, service.in_service(finished_pipeline.store).version
    ).manifest
    assert [row["name"] for row in manifest["verdict"]["checks"]] == names
    assert manifest["policy"]["digest"] == verdict["policy_digest"]
    for row in verdict["checks"]:
        assert row["outcome"] == "passed"
        assert f"candidate, {row['name']}: passed, {row['reason']}" in caplog.text
        assert f"<td>{row['name']}</td>" in report


def test_the_report_has_all_it_shows_inside_and_the_model_card_says_what_it_takes_to_use_the_model(
    finished_pipeline: Pipeline,
) -> None:
    report = finished_pipeline.store.get(run_key(RUN.id, "report.html")).decode()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)""", report)
    assert {address.partition(",")[0] for pair in addresses for address in pair if address} == {
        "data:image/png;base64",
        "data_docs/index.html",  # the only one outside, for those who look at the folder
    }
    release = service.open_release(finished_pipeline.store, service.in_service(finished_pipeline.store).version)
    card, manifest = release.files["model_card.md"].decode(), release.manifest
    assert f"below **{manifest['novelty_threshold']:.6f}**" in card
    for told in ("version", "run_id", "model_sha256"):
        assert manifest[told] in card
    assert manifest["data"]["fingerprint"] in card
    assert all(f"| {name} |" in card for name in manifest["classes"])


def test_a_candidate_that_is_held_is_rejected_where_nobody_is_asked(finished_pipeline: Pipeline) -> None:
    with pytest.raises(RejectedError, match=r"candidate rejected: the size in bytes is .*, above the bound of 1\."):
        run_again("promotion_gate", asking(approval=False))
    record = read_record(finished_pipeline.store, RUN.id, "promotion_gate")
    assert (record["status"], record["result"]["decision"]) == ("rejected", "hold")


def test_a_candidate_that_is_held_is_published_only_with_an_approval(finished_pipeline: Pipeline) -> None:
    verdict = run_again("promotion_gate", asking(approval=True))
    assert verdict["decision"] == "hold"
    given = results(finished_pipeline, steps.INPUTS["publish"])
    for answer in (None, {"chosen_options": ["Reject"]}, {"chosen_options": []}):
        with pytest.raises(ConflictError, match=r"it says hold, and nobody approved; nothing is published"):
            steps.publish(RUN, *given.values(), approval=answer)
    approved = {
        "chosen_options": ["Approve"],
        "responded_by_user": {"id": "1", "name": "admin"},
        "responded_at": "2026-11-30T08:00:00+00:00",
        "params_input": {"approval_reason": "it is small enough"},
    }
    again = replace(RUN, created="2026-11-24T02:00:00+00:00")
    version = steps.publish(again, *given.values(), approval=approved)["version"]
    verdict = releases.read_manifest(finished_pipeline.store, version)["verdict"]
    assert verdict["decision"] == "hold"
    assert verdict["approval"] == {"by": "admin", "at": "2026-11-30T08:00:00+00:00", "reason": "it is small enough"}


def test_an_approval_does_not_help_a_candidate_that_repeats_a_withdrawn_release(finished_pipeline: Pipeline) -> None:
    first = service.in_service(finished_pipeline.store).version
    finished_pipeline.promote_second_release()
    withdrawal.withdraw(finished_pipeline.store, first, "its labels were wrong", actor="ann")
    verdict = run_again("promotion_gate", asking(approval=True, policy={}))
    assert verdict["decision"] == "hold"
    assert (
        f"the candidate is the model of release {first}, or comes from the same data, code and parameters, and that"
        in verdict["summary"]
    )
    given = results(finished_pipeline, steps.INPUTS["publish"])
    with pytest.raises(RejectedError, match=rf"the candidate is the model of release {first}"):
        steps.publish(RUN, *given.values(), approval={"chosen_options": ["Approve"]})


def test_an_approval_does_not_help_a_rejected_candidate(finished_pipeline: Pipeline) -> None:
    given = results(finished_pipeline, steps.INPUTS["publish"])
    given["promotion_gate"] = given["promotion_gate"] | {"decision": "reject"}
    with pytest.raises(ConflictError, match=r"it says reject"):
        steps.publish(RUN, *given.values(), approval={"chosen_options": ["Approve"]})


def test_the_next_candidate_is_compared_with_the_champion(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_pipeline.promote_earlier_release()  # its manifest has other figures and another policy
    replay_steps(monkeypatch, finished_pipeline.store, names=("train", "fine_tune"))
    before = service.in_service(finished_pipeline.store)
    finished_pipeline.run_until("promotion_gate", NEXT)
    verdict = results(finished_pipeline, ("promotion_gate",), NEXT)["promotion_gate"]
    assert (verdict["champion"]["version"], verdict["champion"]["sequence"]) == (before.version, before.sequence)
    (row,) = (row for row in verdict["checks"] if row["name"] == "champion")
    assert before.version in row["reason"]
    run_again("publish", NEXT)
    run_again("verify_release", NEXT)
    run_again("promote", NEXT)
    assert len(champion.history(finished_pipeline.store)) == 3


def test_a_report_tells_of_a_run_of_an_earlier_version(finished_pipeline: Pipeline) -> None:
    records = read_records(finished_pipeline.store, RUN.id)
    assert "FPR at 99 % TPR" in build_report(finished_pipeline.store, RUN.id, records).decode()
    report = build_report(finished_pipeline.store, RUN.id, write_as_before(records)).decode()
    assert "FPR at 95 % TPR" in report
    assert "FPR at 99 % TPR" not in report


def test_the_threshold_accepts_99_percent_of_the_validation_images(finished_pipeline: Pipeline) -> None:
    release = service.open_release(finished_pipeline.store, service.in_service(finished_pipeline.store).version)
    _, familiarity = h5.predict(
        release.model, load(finished_pipeline.store, release.manifest["data"]).validation_images
    )
    accepted = (familiarity >= release.manifest["novelty_threshold"]).mean()
    assert accepted == pytest.approx(0.99, abs=1 / len(familiarity))


def test_a_policy_without_meaning_ends_the_run_at_its_beginning(pipeline: Pipeline) -> None:
    run = Run("run-1", RUN.created, Parameters(policy={"accuracy": {"at_least": 92}}))
    with pytest.raises(SettingsError, match=r"accuracy.at_least: Input should be less than or equal to 1"):
        steps.ingest(run)


def test_a_planted_report_of_last_week_publishes_nothing_when_training_fails(
    finished_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ingest", "validate_data", "detect_change"):
        run_again(name, NEXT)
    for stat in finished_pipeline.store.list(f"runs/{RUN.id}/"):
        key = stat.key.replace(RUN.id, NEXT.id, 1)
        if finished_pipeline.store.stat(key) is None:
            finished_pipeline.store.put(key, finished_pipeline.store.get(stat.key))

    def fail(*arguments: object) -> None:
        raise TrainingError("loss is nan")

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(TrainingError):
        run_again("train", NEXT)
    before = releases.versions(finished_pipeline.store)
    for name in ("publish", "accuracy_gate", "promotion_gate"):
        with pytest.raises(IntegrityError, match=r"is the record of run run-1"):
            run_again(name, NEXT)
    assert releases.versions(finished_pipeline.store) == before
    assert len(champion.history(finished_pipeline.store)) == 1
