"""Where the points of a small line chart lie: pure geometry for the page's SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

WIDTH, HEIGHT = 640, 200  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 100, 12, 14, 14  # margins, for ticks and labels


@dataclass(frozen=True)
class Point:
    """A value in its place, and what a person reads there."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A line of points, oldest left, with ticks on the left: (y, text)."""

    left: ClassVar[int] = _LEFT  # where the points begin and end
    right: ClassVar[int] = WIDTH - _RIGHT
    points: list[Point]
    ticks: list[tuple[float, str]]
    bound: float | None  # y of a line across, if one is asked for and in sight

    @property
    def path(self) -> str:
        """The points as an SVG path."""
        return " ".join(f"{'M' if not i else 'L'}{p.x:.1f} {p.y:.1f}" for i, p in enumerate(self.points))


def line_chart(values: Sequence[float], labels: Sequence[str], digits: str, bound: float | None = None) -> Chart:
    """A chart of values (N,), at least one; `digits` is the format of a tick, `bound` a value to draw a line at."""
    seen = [*values, bound] if bound is not None else [*values]
    low, high = min(seen), max(seen)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values) - 1)
    points = [
        Point(round(_LEFT + number * step, 1), round(place(value), 1), label)
        for number, (value, label) in enumerate(zip(values, labels, strict=True))
    ]
    ticks = [low + (high - low) * share for share in (0.1, 0.5, 0.9)]
    return Chart(
        points, [(place(tick), format(tick, digits)) for tick in ticks], None if bound is None else place(bound)
    )
