"""Gates: pure functions from metrics to a verdict.

They fail closed: a metric that is missing or not finite, metrics of another run, model or dataset, and an empty list of
checks reject. This module reads no file, opens no store and imports no framework.
"""

from __future__ import annotations

import math
from typing import Any

from fmnist_tasks.schemas.evaluation import Check, Decision, Identity, OnFailure, Verdict, make_check

_MAX_DIGITS = 17  # of a float64


def decide_verdict(identity: Identity, checks: list[Check]) -> Verdict:
    """The verdict: `promote` if all checks passed, `hold` if at least one has the outcome `hold` and none rejects.

    Otherwise, or without checks, it is `reject`.
    """
    outcomes = {check.outcome for check in checks} or {"reject"}
    decision: Decision = "reject" if "reject" in outcomes else "hold" if "hold" in outcomes else "promote"
    return Verdict(**dict(identity), decision=decision, checks=checks)


def check_identity(expected: Identity, metrics: Identity) -> Check:
    """Check that the metrics are of this run, model and dataset, and were measured by this code."""
    wrong = [
        f"{name} is {getattr(metrics, name)!r}, expected {value!r}"
        for name, value in expected
        if getattr(metrics, name) != value
    ]
    return make_check(
        "identity",
        metrics.run_id,
        f"run {expected.run_id}",
        not wrong,
        "; ".join(wrong) or "the metrics belong to this run, model, dataset and code",
    )


def check_minimum(
    name: str, value: Any, threshold: float, what: str, on_failure: OnFailure = "reject", form: str = ".2%"
) -> Check:
    """Check that the metric is a finite number and at least the threshold, which must be finite too."""
    return _check_threshold(name, value, threshold, what, on_failure, form, is_minimum=True)


def check_maximum(
    name: str, value: Any, threshold: float, what: str, on_failure: OnFailure = "reject", form: str = ".2%"
) -> Check:
    """Check that the metric is a finite number and at most the threshold, which must be finite too."""
    return _check_threshold(name, value, threshold, what, on_failure, form, is_minimum=False)


def _check_threshold(
    name: str, value: Any, threshold: float, what: str, on_failure: OnFailure, form: str, *, is_minimum: bool
) -> Check:
    sign = "≥" if is_minimum else "≤"
    if not is_finite(value):
        required = f"{sign} {threshold:{form}}"
        # Rejects even if the policy says `hold`: a user cannot decide on a metric that was not measured.
        return make_check(
            name, None, required, False, f"{what} is missing or not a number ({value!r}); required: {required}"
        )
    has_passed = math.isfinite(threshold) and (value >= threshold if is_minimum else value <= threshold)
    side = ("at least" if has_passed else "below") if is_minimum else ("at most" if has_passed else "above")
    measured, limit = format_apart(value, threshold, form)
    message = f"{what} is {measured}, {side} the threshold of {limit}"
    return make_check(name, value, f"{sign} {limit}", has_passed, message, on_failure)


def format_apart(value: float, other: float, form: str) -> tuple[str, str]:
    """Format two numbers, such as a metric and its threshold, with up to 17 more decimals to tell them apart.

    `form` is a format with a precision of one digit, which equal numbers keep: with `.2%`, 0.92 and 0.92 become
    92.00%, 92.00%, and 0.91999 and 0.92 become 91.999%, 92.000%.
    """
    start, _, end = form.partition(".")
    for extra in range(_MAX_DIGITS if value != other else 1):
        longer = f"{start}.{int(end[0]) + extra}{end[1]}"
        texts = f"{value:{longer}}", f"{other:{longer}}"
        if texts[0] != texts[1]:
            break
    return texts


def is_finite(value: Any) -> bool:
    """Whether the value is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
