"""How sure a figure is: exact tests and intervals of counts."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def share_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, of `right` among `count` (Wilson 1927)."""
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int, one_sided: bool = False) -> float:
    """The p-value of two classifiers being equally good, from the images that only one of them has right (exact).

    One-sided it is that of the second being no better than the first (McNemar 1947).
    """
    differing = only_first + only_second
    if not differing:
        return 1.0
    return float(binomtest(only_second, differing, alternative="greater" if one_sided else "two-sided").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being many (Holm 1979), in their order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
