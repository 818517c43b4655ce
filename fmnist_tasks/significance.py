"""Statistical significance: exact tests and confidence intervals of counts."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of the share `successes / count` (Wilson 1927)."""
    interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int, one_sided: bool = False) -> float:
    """The p-value of the exact McNemar test, from the images that only one of two classifiers classifies correctly.

    The null hypothesis is that both are equally good; one-sided, that the second is not better (McNemar 1947).
    """
    count = only_first + only_second
    if not count:
        return 1.0
    return float(binomtest(only_second, count, alternative="greater" if one_sided else "two-sided").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted for their number (Holm 1979), in the same order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
