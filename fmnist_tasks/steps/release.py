"""The steps of the task group `release`: publish the candidate, verify the release, promote it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from fmnist_tasks.alerts import Alert, send_alert
from fmnist_tasks.errors import ConflictError, IntegrityError, ModelError, RejectedError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import read_record, read_records
from fmnist_tasks.registry.store import Store, is_ahead
from fmnist_tasks.run_report import RecordedRun, parse_results, read_figures, render_run
from fmnist_tasks.schemas.base import RunParameters
from fmnist_tasks.schemas.evaluation import CandidateMetrics
from fmnist_tasks.schemas.releases import Approval, ReleaseFacts, ReleaseMetrics, ReleaseVerdict, ValidationAccuracy
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    CandidateEvaluationResult,
    EvaluationResult,
    IngestResult,
    PromotionGateResult,
    PromotionResult,
    PublishResult,
    TunedModelResult,
    ValidationResult,
    VerificationResult,
)
from fmnist_tasks.serving.release import open_release
from fmnist_tasks.serving.rollback import require_reason
from fmnist_tasks.steps.evaluation import count_prediction_mismatches, make_identity
from fmnist_tasks.steps.gates import make_candidate_origin
from fmnist_tasks.steps.step import Run, step
from fmnist_tasks.text import make_printable

_RELEASE_STEPS = {"publish", "verify_release", "promote"}


@step("ingest", "validate_data", "choose_base", "evaluate_base", "fine_tune", "evaluate_tuned", "promotion_gate")
def publish(
    store: Store,
    run: Run,
    ingestion: IngestResult,
    validation: ValidationResult,
    base: BaseModelResult,
    base_evaluation: EvaluationResult,
    tuned: TunedModelResult,
    evaluation: CandidateEvaluationResult,
    verdict: PromotionGateResult,
    approval: dict[str, Any] | None = None,
) -> PublishResult:
    """Write the release: model, model card, report and figures, and last the manifest.

    `approval` is a user's response, as Airflow's ApprovalOperator returns it; a candidate on hold needs one.
    """
    from fmnist_tasks.evaluation.report import render_card

    candidate = tuned.candidate
    accepted = _read_approval(store, run, verdict, approval)
    _require_verdict(run, ingestion, validation, tuned, verdict, accepted)
    champion_log = champion.read_log(store)
    repeated = champion_log.find_withdrawal(make_candidate_origin(run, validation, candidate.model))
    if repeated:
        raise RejectedError(champion.describe_withdrawal("the candidate", *repeated))
    facts = ReleaseFacts(
        title=ingestion.title,
        classes=validation.dataset.classes,
        run_id=run.id,
        created=run.created,
        model_sha256=candidate.model.sha256,
        parameters=cast(RunParameters, run.parameters.to_json()),
        dataset=validation.dataset,
        source=ingestion.source,
        drift=validation.drift,
        code=ingestion.code,
        machine=ingestion.machine,
        chosen=tuned.chosen,
        ood_threshold=candidate.ood_threshold,
        temperature=candidate.temperature,
        metrics=ReleaseMetrics(
            validation_accuracy=ValidationAccuracy(base=base.validation_accuracy, tuned=tuned.validation_accuracy),
            base_test_accuracy=base_evaluation.test.accuracy,
            **{name: getattr(evaluation, name) for name in CandidateMetrics.model_fields},
        ),
        policy=verdict.policy,
        policy_digest=verdict.policy_digest,
        verdict=ReleaseVerdict(decision=verdict.decision, checks=verdict.checks, approval=accepted),
    )
    version = f"{datetime.fromisoformat(run.created):%Y%m%dT%H%M%SZ}-{candidate.model.sha256[:8]}"
    version = releases.choose_version(store, version, facts, champion_log)
    # Without the records of this and later steps: a retry, or a second copy of this task, writes the same bytes.
    records = {
        name: record
        for name, record in read_records(store, run.id, require_signature=True).items()
        if name not in _RELEASE_STEPS
    }
    results = parse_results(records)
    files = {
        "model.h5": get_verified(store, candidate.model),
        "model_card.md": render_card(version, facts),
        "report.html": render_run(store, run.id, RecordedRun(records, results)),
        **{f"figures/{name}.png": png for name, png in read_figures(store, results).items()},
    }
    model = releases.publish_release(store, version, files, facts).files["model.h5"]
    return PublishResult(
        version=version,
        manifest_sha256=releases.open_manifest(store, version).sha256,
        model=model,
        location=store.location(model.uri),
        summary=f"release {version}, model.h5 of {model.bytes:,} bytes",
    )


@step("validate_data", "evaluate_tuned", "publish")
def verify_release(
    store: Store, run: Run, validation: ValidationResult, evaluation: CandidateEvaluationResult, release: PublishResult
) -> VerificationResult:
    """Read the release back from the store, and verify that its predictions are bit-identical to the evaluated ones."""
    from fmnist_tasks.data.dataset import load_test_split

    version = release.version
    opened = open_release(store, version)
    _require_same_manifest(version, opened.manifest_sha256, release.manifest_sha256)
    images, _ = load_test_split(store, validation.dataset)
    if differing := count_prediction_mismatches(store, opened.model, images, evaluation.predictions):
        raise ModelError(
            f"release {version}: {differing:,} predictions of the published model differ from those that were "
            "evaluated, or are NaN; it is not promoted. If another processor evaluated them, clear evaluate_tuned and "
            "the tasks after it"
        )
    return VerificationResult(
        version=version,
        manifest_sha256=opened.manifest_sha256,
        summary=f"{len(opened.files)} files intact; predictions on {len(images):,} test images are bit-identical",
    )


@step("promotion_gate", "publish", "verify_release")
def promote(
    store: Store, run: Run, verdict: PromotionGateResult, release: PublishResult, verification: VerificationResult
) -> PromotionResult:
    """Promote the verified release, unless the champion has changed since the candidate was evaluated.

    A run promotes its release once. If the step runs again after a later change of the champion, it changes nothing,
    and `is_current` of its result is false.
    """
    version = release.version
    if verification.version != version:
        raise ConflictError(f"release {version} was not verified ({verification.version} was); it is not promoted")
    signed = releases.open_manifest(store, version)
    _require_same_manifest(version, signed.sha256, verification.manifest_sha256)
    manifest = signed.manifest
    if manifest.run_id != run.id:
        raise ConflictError(f"release {version} was published by run {manifest.run_id}; this run does not promote it")
    decided = manifest.verdict.decision, manifest.verdict.checks
    if decided != (verdict.decision, verdict.checks) and not champion.read_log(store).has_been_champion(version):
        raise ConflictError(
            f"the promotion gate has decided again since release {version} was published; clear publish and the tasks "
            "after it"
        )
    approval = manifest.verdict.approval  # a candidate on hold is published only with one
    entry = champion.append_entry(
        store,
        version=version,
        action="promote",
        reason=f"run {run.id} passed every gate"
        if approval is None
        else f"run {run.id} was approved: {approval.reason}",
        write_id=run.id,
        actor=run.actor if approval is None else approval.by,
        after=verdict.champion.sequence if verdict.champion else 0,
        origin=releases.make_manifest_origin(manifest),
        manifest_sha256=signed.sha256,
    )
    accuracy = manifest.metrics.test.accuracy
    current = champion.find_champion(store)
    if current != entry:
        later = f"{current.version}, by {current.action} (log entry {current.sequence})" if current else "none"
        summary = (
            f"{version} was promoted before (log entry {entry.sequence}); the champion is now {later}. Nothing changes"
        )
    else:
        change = f"{version} is now the champion, with a test accuracy of {accuracy:.2%}"
        send_alert(Alert("champion changed", run.id, change, identity=f"entry {entry.sequence}", dataset=store.dataset))
        summary = f"{version} is the champion (log entry {entry.sequence}), with a test accuracy of {accuracy:.2%}"
    return PromotionResult(
        version=version, sequence=entry.sequence, accuracy=accuracy, is_current=current == entry, summary=summary
    )


def _require_verdict(
    run: Run,
    ingestion: IngestResult,
    validation: ValidationResult,
    tuned: TunedModelResult,
    verdict: PromotionGateResult,
    approval: Approval | None,
) -> None:
    """Raise :class:`ConflictError` unless the verdict is of this candidate, and promotes it or was approved."""
    model = tuned.candidate.model
    expected = make_identity(run, validation, model)
    wrong = [f"{name} is {getattr(verdict, name)}" for name, value in expected if getattr(verdict, name) != value]
    if ingestion.code.digest != verdict.code_digest:
        wrong.append("its code digest is not that of ingest")
    if verdict.decision != "promote" and approval is None:
        wrong.append(f"its decision is {verdict.decision}, without an approval")
    if wrong:
        raise ConflictError(
            f"the verdict does not promote the candidate of this run (model {model.sha256[:12]}): {'; '.join(wrong)}; "
            "nothing is published"
        )


def _require_same_manifest(version: str, sha256: str, earlier: str) -> None:
    """Raise :class:`IntegrityError` unless the manifest is the one that an earlier step of the run has seen."""
    if earlier != sha256:
        raise IntegrityError(
            f"the manifest of release {version} is not the one that was published and verified: it was replaced. The "
            "release is not promoted; delete it, and clear publish and the tasks after it"
        )


def _read_approval(
    store: Store, run: Run, verdict: PromotionGateResult, response: dict[str, Any] | None
) -> Approval | None:
    """Who approved the candidate on hold, when and why; None if nobody did, or if the verdict needs no approval.

    A response to an earlier verdict does not count: the user has not seen this one.
    """
    if verdict.decision != "hold" or response is None or response["chosen_options"] != ["Approve"]:
        return None
    approval = Approval(
        by=make_printable(str((response["responded_by_user"] or {}).get("name") or "an unknown user")),
        at=datetime.fromisoformat(str(response["responded_at"])).astimezone(UTC).isoformat(),
        reason=require_reason((response["params_input"] or {}).get("approval_reason") or ""),
    )
    decided = read_record(store, run.id, "promotion_gate").started
    if is_ahead(datetime.fromisoformat(decided), datetime.fromisoformat(approval.at)):
        raise ConflictError(
            f"{approval.by} approved at {approval.at}, before the promotion gate decided again at {decided}; clear the "
            "task approval to request it again"
        )
    return approval
