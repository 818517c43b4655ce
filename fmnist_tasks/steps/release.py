"""The steps of the task group `release`: publish the candidate, prove what was published, make it champion."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from fmnist_tasks.alerts import Alert, send
from fmnist_tasks.errors import ConflictError, IntegrityError, ModelError, RejectedError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import read_records
from fmnist_tasks.registry.store import Store
from fmnist_tasks.service import open_release
from fmnist_tasks.steps.judging import differing, identity, origin
from fmnist_tasks.steps.step import Result, Run, build_report, read_pictures, step
from fmnist_tasks.text import make_printable

_OWN = {"publish", "verify_release", "promote"}


@step("ingest", "validate_data", "choose_base", "evaluate_base", "fine_tune", "evaluate_tuned", "promotion_gate")
def publish(
    store: Store,
    run: Run,
    ingested: Result,
    validated: Result,
    trained: Result,
    base_figures: Result,
    tuned: Result,
    figures: Result,
    verdict: Result,
    approval: Result | None = None,
) -> Result:
    """Write the release: model, model card, report and pictures, and last the manifest.

    `approval` is what a person answered, as Airflow's ApprovalOperator returns it; a candidate that is held needs it.
    """
    from fmnist_tasks.evaluation.report import render_card

    candidate, dataset = tuned["candidate"], validated["dataset"]
    expected = asdict(identity(run, validated, candidate))
    wrong = [f"{name} is {verdict[name]}" for name, value in expected.items() if verdict[name] != value]
    if ingested["code"]["digest"] != verdict["code_digest"]:
        wrong.append("its code is not that of ingest")
    approved = verdict["decision"] == "hold" and approval is not None and approval["chosen_options"] == ["Approve"]
    if verdict["decision"] != "promote" and not approved:
        wrong.append(f"it says {verdict['decision']}, and nobody approved")
    repeated = champion.read_log(store).find_withdrawal(origin(run, validated, candidate))
    if repeated:
        raise RejectedError(champion.describe_withdrawal("the candidate", *repeated))
    if wrong:
        raise ConflictError(
            f"the verdict does not promote the candidate of this run (model {candidate['model']['sha256'][:12]}): "
            f"{'; '.join(wrong)}; nothing is published"
        )
    version = f"{datetime.fromisoformat(run.created):%Y%m%dT%H%M%SZ}-{candidate['model']['sha256'][:8]}"
    facts = {
        "title": ingested["title"],
        "classes": dataset["classes"],
        "run_id": run.id,
        "created": run.created,
        "model_sha256": candidate["model"]["sha256"],
        "parameters": run.parameters.as_json(),
        "data": {
            "fingerprint": dataset["fingerprint"],
            "source": ingested["source"],
            "parts": dataset["parts"],
            "drift": validated["drift"],
        },
        "code": ingested["code"],
        "machine": ingested["machine"],
        "chosen": tuned["chosen"],
        "novelty_threshold": candidate["novelty_threshold"],
        "temperature": candidate["temperature"],
        "figures": {
            "validation_accuracy": {"base": trained["validation_accuracy"], "tuned": tuned["validation_accuracy"]},
            "base_test_accuracy": base_figures["test"]["accuracy"],
            "test": figures["test"],
            **{name: figures[name] for name in ("novelty", "calibration", "abstention", "champion", "speed")},
        },
        "policy": {"digest": verdict["policy_digest"], **verdict["policy"]},
        "verdict": {**{name: verdict[name] for name in ("decision", "checks")}, "approval": _answer(approval)},
    }
    # Only what came before, so that another try, or a second copy of this task, writes the same bytes.
    records = {name: record for name, record in read_records(store, run.id, to_act=True).items() if name not in _OWN}
    files = {
        "model.h5": get_verified(store, candidate["model"]),
        "model_card.md": render_card({**facts, "version": version}),
        "report.html": build_report(store, run.id, records),
        **{f"figures/{name}.png": picture for name, picture in read_pictures(store, records).items()},
    }
    model = releases.publish(store, version, files, facts)["files"]["model.h5"]
    return {
        "version": version,
        "manifest_sha256": releases.open_manifest(store, version).sha256,
        "model": model,
        "location": store.location(model["uri"]),
        "summary": f"release {version}, model.h5 of {model['bytes']:,} bytes",
    }


@step("validate_data", "evaluate_tuned", "publish")
def verify_release(store: Store, run: Run, validated: Result, evaluated: Result, published: Result) -> Result:
    """Read the release back from the store and prove that its model is, bit for bit, the one that was judged."""
    from fmnist_tasks.data.dataset import load_test

    version = published["version"]
    release = open_release(store, version)
    _require_same_manifest(version, release.manifest_sha256, published)
    images, _ = load_test(store, validated["dataset"])
    if wrong := differing(store, release.model, images, evaluated):
        raise ModelError(
            f"release {version}: {wrong:,} predictions of the published model differ from those that were judged, "
            "or are no numbers; it is not promoted. If another processor judged, clear evaluate_tuned and what follows"
        )
    return {
        "version": version,
        "identical": True,
        "manifest_sha256": release.manifest_sha256,
        "summary": f"{len(release.files)} files intact; predictions on {len(images):,} test images are bit-identical",
    }


@step("promotion_gate", "publish", "verify_release")
def promote(store: Store, run: Run, verdict: Result, published: Result, verified: Result) -> Result:
    """Make the verified release the champion, unless the champion has changed since the candidate was evaluated.

    A run promotes a release once. If its step runs again after a later change of the champion, the result says so, with
    `current` false.
    """
    version = published["version"]
    if verified["version"] != version or verified["identical"] is not True:
        raise ConflictError(f"release {version} was not verified ({verified['version']} was); it is not promoted")
    document = releases.open_manifest(store, version)
    _require_same_manifest(version, document.sha256, verified)
    manifest = document.content
    if manifest["run_id"] != run.id:
        raise ConflictError(
            f"release {version} was published by run {manifest['run_id']}; this run does not promote it"
        )
    approval = manifest["verdict"]["approval"]  # what was held is published only if it was approved
    entry = champion.append(
        store,
        version=version,
        action="promote",
        reason=f"run {run.id} passed every gate"
        if approval is None
        else f"run {run.id} was held; {approval['reason']}",
        write_id=run.id,
        actor=run.actor if approval is None else str(approval["by"]),
        after=verdict["champion"]["sequence"] if verdict["champion"] else 0,
        origin=releases.origin_of(manifest),
        manifest_sha256=document.sha256,
    )
    accuracy = next(check["value"] for check in verdict["checks"] if check["name"] == "accuracy")
    current = champion.champion(store)
    result = {**entry.as_json(), "accuracy": accuracy, "current": current == entry}
    if current != entry:
        later = f"{current.version} by {current.action}, number {current.sequence}" if current else "none"
        told = f"{version} was promoted before, as number {entry.sequence}; since then the champion is {later}"
        return {**result, "summary": f"{told}. Nothing changes"}
    change = f"{version} is the champion now, with test accuracy {accuracy:.2%}"
    send(Alert("champion changed", run.id, change, identity=f"entry {entry.sequence}"))
    told = f"{version} is the champion, number {entry.sequence}, with test accuracy {accuracy:.2%}"
    return {**result, "summary": told}


def _require_same_manifest(version: str, sha256: str, earlier: Result) -> None:
    """Raise :class:`IntegrityError` unless the manifest is the one that an earlier step of the run saw."""
    if earlier.get("manifest_sha256") != sha256:  # None: by an earlier version of this project
        raise IntegrityError(
            f"the manifest of release {version} is not the one that was published and verified, so it was replaced; it "
            "is not promoted"
        )


def _answer(approval: Result | None) -> Result | None:
    """Who approved, when and why; None if the verdict promotes without an approval."""
    if approval is None:
        return None
    return {
        "by": make_printable(str((approval["responded_by_user"] or {}).get("name"))),
        "at": str(approval["responded_at"]),
        "reason": make_printable((approval["params_input"] or {}).get("approval_reason", "")),
    }
