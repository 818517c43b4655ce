"""The row in which every check of data or model reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Otherwise = Literal["reject", "hold"]


@dataclass(frozen=True)
class Check:
    """One question that was asked, and its outcome."""

    name: str
    value: float | str | None  # what was found; None when it could not be told
    bound: str  # what was asked for
    passed: bool
    reason: str  # one sentence for a person
    otherwise: Otherwise = "reject"  # what it does when it has not passed

    @property
    def outcome(self) -> str:
        """One of "passed", "hold" and "reject"."""
        return "passed" if self.passed else self.otherwise

    def as_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {
            "name": self.name,
            "value": self.value,
            "bound": self.bound,
            "outcome": self.outcome,
            "reason": self.reason,
        }
