"""From figures to a verdict: pure decisions that fail closed.

A figure that is missing or no finite number, figures of another run, model or dataset, and an empty list of checks
are all rejections. Nothing here reads a file, opens a store or knows a framework.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fmnist_tasks.verdict import Check, Otherwise


@dataclass(frozen=True)
class Identity:
    """What a set of figures belongs to."""

    run_id: str
    model_sha256: str
    data_fingerprint: str
    code_digest: str


@dataclass(frozen=True)
class Verdict:
    """The decision on one model of one run, and every check that led to it."""

    decision: str  # "promote", "hold" or "reject"
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
    """Promote only if there are checks and all passed; hold if those that did not all say so."""
    outcomes = {check.outcome for check in checks} or {"reject"}
    decision = "reject" if "reject" in outcomes else "hold" if "hold" in outcomes else "promote"
    return Verdict(decision, identity, tuple(checks))


def same_origin(expected: Identity, figures: dict[str, Any]) -> Check:
    """The figures were measured in this run, on this model and this dataset, by this code."""
    wrong = [
        f"{name} is {figures.get(name)!r}, expected {value!r}"
        for name, value in asdict(expected).items()
        if figures.get(name) != value
    ]
    return Check(
        name="bound to its run",
        value=figures.get("run_id"),
        bound=f"run {expected.run_id}",
        passed=not wrong,
        reason="; ".join(wrong) or "the figures belong to this run, model, dataset and code",
    )


def at_least(
    name: str, value: Any, bound: float, what: str, otherwise: Otherwise = "reject", form: str = ".2%"
) -> Check:
    """The figure is a finite number of at least the bound, which must be finite itself."""
    return _compared(name, value, bound, what, otherwise, form, least=True)


def at_most(
    name: str, value: Any, bound: float, what: str, otherwise: Otherwise = "reject", form: str = ".2%"
) -> Check:
    """The figure is a finite number of at most the bound, which must be finite itself."""
    return _compared(name, value, bound, what, otherwise, form, least=False)


def _compared(name: str, value: Any, bound: float, what: str, otherwise: Otherwise, form: str, *, least: bool) -> Check:
    asked = f"{'≥' if least else '≤'} {bound:{form}}"
    if not finite(value):
        # What could not be measured cannot be judged: no person can decide on it either.
        reason = f"{what} is missing or no number ({value!r}); {asked} is asked"
        return Check(name, None, asked, False, reason)
    passed = math.isfinite(bound) and (value >= bound if least else value <= bound)
    side = ("at least" if passed else "below") if least else ("at most" if passed else "above")
    return Check(name, value, asked, passed, f"{what} is {value:{form}}, {side} the bound of {bound:{form}}", otherwise)


def finite(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
