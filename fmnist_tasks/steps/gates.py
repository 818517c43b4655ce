"""The gates: the steps that decide from a model's metrics whether the run continues."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.evaluation import gate, model_checks
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.provenance import describe_code
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.documents import compute_digest
from fmnist_tasks.registry.releases import make_origin
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.evaluation import Verdict
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    CandidateEvaluationResult,
    EvaluationResult,
    GateResult,
    PromotionGateResult,
    TunedModelResult,
    ValidationResult,
)
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.evaluation import make_identity
from fmnist_tasks.steps.step import Run, step

log = logging.getLogger(__name__)


@step("validate_data", "choose_base", "evaluate_base")
def accuracy_gate(
    store: Store, run: Run, validation: ValidationResult, base: BaseModelResult, evaluation: EvaluationResult
) -> GateResult:
    """Reject the run unless the base model reaches the minimum test accuracy."""
    expected = make_identity(run, validation, base.model)
    checks = [
        gate.check_identity(expected, evaluation),
        model_checks.check_accuracy(read_run_policy(run).accuracy, evaluation.test),
    ]
    return GateResult(**to_gate_result(gate.decide_verdict(expected, checks), "base model", is_approval_on=False))


@step("validate_data", "fine_tune", "evaluate_tuned")
def promotion_gate(
    store: Store, run: Run, validation: ValidationResult, tuned: TunedModelResult, evaluation: CandidateEvaluationResult
) -> PromotionGateResult:
    """Decide whether the candidate may become the champion."""
    policy, model = read_run_policy(run), tuned.candidate.model
    expected = make_identity(run, validation, model)
    repeated = champion.read_log(store).find_withdrawal(make_candidate_origin(run, validation, model))
    checks = [
        gate.check_identity(expected, evaluation),
        *model_checks.check_candidate(policy, evaluation),
        model_checks.check_not_withdrawn(repeated and champion.describe_withdrawal("the candidate", *repeated)),
    ]
    return PromotionGateResult(
        **to_gate_result(gate.decide_verdict(expected, checks), "candidate", is_approval_on=run.parameters.approval),
        champion=evaluation.champion,
        policy=policy,
        policy_digest=compute_digest(policy.to_json()),
    )


def read_run_policy(run: Run) -> Policy:
    """The policy with the overrides of this run; raises :class:`SettingsError` like :func:`read_valid_policy`."""
    return read_valid_policy(run.dataset, run.parameters.policy_overrides)


def read_valid_policy(dataset: str, overrides: Mapping[str, Any]) -> Policy:
    """The policy of a dataset, with overrides.

    Raises :class:`SettingsError` for a fault, or an OOD family that the dataset lacks.
    """
    from fmnist_tasks.data.declaration import load_declaration
    from fmnist_tasks.model.ood.families import list_families

    settings = Settings.from_environment()
    declaration = load_declaration(settings, dataset)
    policy = read_policy(overrides, declaration.find_gates(settings.gates))
    families = list_families(declaration)
    if unknown := sorted(policy.ood.families.keys() - set(families)):
        raise SettingsError(
            f"policy: ood: families that do not exist for {declaration.title}: {', '.join(unknown)}; remove them from "
            f"the policy. These exist: {', '.join(families)}"
        )
    return policy


def make_candidate_origin(run: Run, validation: ValidationResult, model: Reference) -> champion.Origin:
    """The origin of this run's candidate: its model, and its data, code and parameters."""
    parameters = run.parameters.to_json()
    return make_origin(model.sha256, validation.dataset.fingerprint, describe_code().digest, parameters)


def to_gate_result(verdict: Verdict, subject: str, *, is_approval_on: bool) -> dict[str, Any]:
    """The fields of a gate's result.

    The run is rejected unless the decision is `promote`, or is `hold` and approval is on.
    """
    for check in verdict.checks:
        log.info("%s, %s: %s, %s", subject, check.name, check.outcome, check.message)
    if verdict.decision == "promote":
        accuracy = next(check.message for check in verdict.checks if check.name == "accuracy")
        return {**dict(verdict), "summary": f"{subject} passes {len(verdict.checks)} checks: {accuracy}"}
    if verdict.decision == "hold" and is_approval_on:
        return {**dict(verdict), "summary": f"{subject} on hold until a user approves it: {verdict.failures}"}
    rejection = f"{subject} rejected, since {verdict.failures}. Nothing is promoted"
    return {**dict(verdict), "summary": rejection, "rejection": rejection}
