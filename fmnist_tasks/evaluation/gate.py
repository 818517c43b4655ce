"""From figures to a verdict: pure decisions that fail closed.

A figure that is missing or no finite number, figures of another run, model or dataset, and an empty list of checks
are all rejections. Nothing here reads a file, opens a store or knows a framework.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fmnist_tasks.verdict import Check


@dataclass(frozen=True)
class Identity:
    """What a set of figures belongs to."""

    run_id: str
    model_sha256: str
    data_fingerprint: str


@dataclass(frozen=True)
class Verdict:
    """The decision on one model of one run, and every check that led to it."""

    decision: str  # "promote" or "reject"
    identity: Identity
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return {
            "decision": self.decision,
            **asdict(self.identity),
            "checks": [check.as_json() for check in self.checks],
        }

    @property
    def failures(self) -> str:
        """The reasons of all checks that did not pass, joined."""
        return "; ".join(check.reason for check in self.checks if not check.passed) or "no check was made"


def judge(identity: Identity, checks: list[Check]) -> Verdict:
    """Promote only if there are checks and all passed."""
    passed = bool(checks) and all(check.passed for check in checks)
    return Verdict("promote" if passed else "reject", identity, tuple(checks))


def same_origin(expected: Identity, figures: dict[str, Any]) -> Check:
    """The figures were measured in this run, on this model and this dataset."""
    wrong = [
        f"{name} is {figures.get(name)!r}, expected {value!r}"
        for name, value in asdict(expected).items()
        if figures.get(name) != value
    ]
    return Check(
        name="origin",
        value=figures.get("run_id"),
        bound=f"run {expected.run_id}",
        passed=not wrong,
        reason="; ".join(wrong) or "the figures belong to this run, model and dataset",
    )


def at_least(name: str, value: Any, bound: float, what: str) -> Check:
    """The figure is a finite number of at least the bound, which must be finite itself."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    passed = number and math.isfinite(bound) and value >= bound
    if not number:
        reason = f"{what} is missing or no number ({value!r}); it must reach {bound:.2%}"
    else:
        reason = f"{what} is {value:.2%}, {'at least' if passed else 'below'} the bound of {bound:.2%}"
    return Check(name, value if number else None, f"≥ {bound:.2%}", passed, reason)
