"""The checks of the promotion gate, from the candidate's metrics and the policy."""

from __future__ import annotations

from fmnist_tasks.evaluation.gate import check_maximum, check_minimum, format_apart
from fmnist_tasks.schemas.evaluation import CandidateEvaluation, ChampionComparison, Check, Classification, make_check
from fmnist_tasks.schemas.policy import (
    AccuracyPolicy,
    CalibrationPolicy,
    ChampionPolicy,
    ClassPolicy,
    OodPolicy,
    Policy,
    ServingPolicy,
)
from fmnist_tasks.significance import holm, mcnemar


def check_candidate(policy: Policy, metrics: CandidateEvaluation) -> list[Check]:
    """The checks of a candidate against the policy; the step adds those of its identity and of withdrawn releases."""
    return [
        check_accuracy(policy.accuracy, metrics.test),
        check_against_champion(policy.champion, metrics.champion),
        check_recall(policy.classes, metrics.test),
        check_classes_against_champion(policy.classes, metrics.champion),
        check_calibration(policy.calibration, metrics),
        *check_ood_detection(policy.ood, metrics),
        *check_serving(policy.serving, metrics),
    ]


def check_accuracy(policy: AccuracyPolicy, test: Classification) -> Check:
    """Check that the test accuracy reaches the threshold."""
    check = check_minimum("accuracy", test.accuracy, policy.min, "test accuracy", policy.on_failure)
    low, high = test.interval
    return _replace_message(check, f"{check.message} (95% confidence interval {low:.2%} to {high:.2%})")


def check_against_champion(policy: ChampionPolicy, champion: ChampionComparison | None) -> Check:
    """Check that the candidate is not significantly worse or, if inconclusive, not less accurate on validation."""
    name = "champion"
    threshold = (
        f"not significantly worse (exact McNemar test, level {policy.significance}); "
        "if inconclusive, not less accurate on validation"
    )
    if champion is None:
        return _explain_no_champion(name, threshold)
    gained, lost = champion.only_candidate, champion.only_champion
    p = mcnemar(lost, gained)
    counts = (
        f"{_format_p_value(p, policy.significance)} "
        f"(test images classified correctly only by the candidate: {gained}, only by the champion: {lost})"
    )
    if p < policy.significance:
        is_better = gained > lost
        message = f"the candidate is significantly {'better' if is_better else 'worse'} than the champion, {counts}"
        return make_check(name, p, threshold, is_better, message, policy.on_significantly_worse)
    has_passed = champion.candidate_validation_accuracy >= champion.validation_accuracy
    side = "at least" if has_passed else "below"
    candidate, current = format_apart(champion.candidate_validation_accuracy, champion.validation_accuracy, ".2%")
    message = (
        f"validation accuracy is {candidate}, {side} the champion's {current}, and the test images show no significant "
        f"difference, {counts}"
    )
    return make_check(name, p, threshold, has_passed, message, policy.on_inconclusive)


def check_recall(policy: ClassPolicy, test: Classification) -> Check:
    """Check that the recall of every class reaches the threshold."""
    worst = min(test.classes, key=lambda row: row.recall)
    what = f"the lowest recall of a class ({worst.name})"
    return check_minimum("class recall", worst.recall, policy.min_recall, what, policy.on_failure)


def check_classes_against_champion(policy: ClassPolicy, champion: ChampionComparison | None) -> Check:
    """Check that no class has a significantly lower recall than with the champion."""
    name, threshold = (
        "class recall against champion",
        f"no class significantly worse (one-sided McNemar tests, Holm's correction, level {policy.significance})",
    )
    if champion is None:
        return _explain_no_champion(name, threshold)
    p_values = holm([mcnemar(row.only_candidate, row.only_champion, one_sided=True) for row in champion.classes])
    worse = [
        f"{row.name} ({_format_p_value(p, policy.significance)})"
        for row, p in zip(champion.classes, p_values, strict=True)
        if p < policy.significance
    ]
    message = f"recall is significantly lower than the champion's: {', '.join(worse)}"
    if not worse:
        message = (
            f"no class has a significantly lower recall (lowest {_format_p_value(min(p_values), policy.significance)})"
        )
    return make_check(name, min(p_values), threshold, not worse, message, policy.on_failure)


def check_calibration(policy: CalibrationPolicy, metrics: CandidateEvaluation) -> Check:
    """Check that the expected calibration error is at most the threshold."""
    calibration, what = metrics.calibration, "the expected calibration error"
    check = check_maximum("calibration", calibration.error, policy.max_error, what, policy.on_failure, ".4f")
    low, high = calibration.interval
    return _replace_message(check, f"{check.message} (95% confidence interval {low:.4f} to {high:.4f})")


def check_ood_detection(policy: OodPolicy, metrics: CandidateEvaluation) -> list[Check]:
    """Check that each OOD family in the policy reaches its thresholds."""
    checks = []
    for family, limits in policy.families.items():
        measured = metrics.ood.families.get(family)
        auroc, fpr = (measured.auroc, measured.fpr99) if measured else (None, None)
        checks += [
            check_minimum(f"{family}, AUROC", auroc, limits.min_auroc, f"AUROC of {family}", policy.on_failure, ".4f"),
            check_maximum(
                f"{family}, FPR at 99% TPR", fpr, limits.max_fpr99, f"FPR of {family} at 99% TPR", policy.on_failure
            ),
        ]
    return checks


def check_not_withdrawn(repeated: str | None) -> Check:
    """Check that the candidate repeats no withdrawn release; `repeated` says which one it repeats, and what to do."""
    message = repeated or "the candidate does not repeat a withdrawn release"
    return make_check("withdrawn releases", None, "none repeated", repeated is None, message, "hold")


def check_serving(policy: ServingPolicy, metrics: CandidateEvaluation) -> list[Check]:
    """Check that the model is fast and small enough for serving."""
    serving, on_failure = metrics.serving, policy.on_failure
    latency = "latency of one image (95th percentile, ms)"
    return [
        check_maximum("latency", serving.single_image_ms, policy.max_single_image_ms, latency, on_failure, ".1f"),
        check_maximum("load time", serving.load_seconds, policy.max_load_seconds, "load time (s)", on_failure, ".1f"),
        check_maximum("size", serving.bytes, policy.max_bytes, "size (bytes)", on_failure, ",.0f"),
    ]


def _explain_no_champion(name: str, threshold: str) -> Check:
    return make_check(name, None, threshold, True, "there is no champion yet")


def _format_p_value(p: float, significance: float) -> str:
    if p < 0.001 <= significance:
        return "p < 0.001"
    return f"p = {format_apart(p, significance, '.3f' if significance >= 0.001 else '.5f')[0]}"


def _replace_message(check: Check, message: str) -> Check:
    return check.model_copy(update={"message": message})
