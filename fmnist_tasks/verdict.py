"""The row in which every check of data or model reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One question that was asked, and its outcome."""

    name: str
    value: float | str | None  # what was found; None when it could not be told
    bound: str  # what was asked for
    passed: bool
    reason: str  # one sentence for a person

    def as_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)
