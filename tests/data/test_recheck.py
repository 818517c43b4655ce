"""The check of all accepted batches of a source together."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_tasks.data.recheck import SourceStatistics, check_source, choose_sample, find_source, group_by_source
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import ImageSet
from fmnist_tasks.schemas.policy import RecheckPolicy, ReviewPolicy


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("incoming/week.npz", "incoming"),
        ("incoming/shop/week.npz", "shop"),
        ("incoming/shop/2026/week.npz", "shop"),
        ("incoming/week 12/coat/1.png", "week 12"),
    ],
)
def test_a_source_is_the_first_folder(key: str, source: str) -> None:
    assert find_source(key) == source


def test_batches_are_grouped_and_images_from_review_are_left_out() -> None:
    def make_set(*keys: str) -> ImageSet:
        blob = Reference(uri="blobs/x", sha256="0" * 64, bytes=1)
        return ImageSet(split="train", source="s", images=1, blob=blob, keys=list(keys))

    sets = [make_set("incoming/a/1.npz"), make_set("incoming/b/1.npz"), make_set("incoming/a/2.npz"), make_set()]
    assert group_by_source(sets) == {"a": [sets[0], sets[2]], "b": [sets[1]]}


def test_a_sample_is_random_and_of_the_right_size() -> None:
    counts = [5, 0, 1000, 20]
    assert [len(rows) for rows in choose_sample(counts, 10_000)] == counts
    chosen = choose_sample(counts, 200)
    assert sum(map(len, chosen)) == 200
    assert all((np.diff(rows) > 0).all() and (rows < count).all() for rows, count in zip(chosen, counts, strict=True))


@pytest.mark.parametrize(
    ("findings", "failed"),
    [
        (SourceStatistics(10_000, 0, 100, 50, 0.02, 0.5), []),
        (SourceStatistics(10_000, 0, 150, 0, 0.02, 1e-9), []),  # significant, but below 2%
        (SourceStatistics(10_000, 0, 210, 0, 0.02, 0.5), ["doubtful labels"]),
        (SourceStatistics(100, 0, 3, 0, 0.02, 0.5), []),  # above 2%, but not significant
        (SourceStatistics(10_000, 0, 0, 300, 0.02, 0.5), ["near-duplicates"]),
        (SourceStatistics(10_000, 0, 0, 0, 0.11, 1e-9), ["drift"]),
        (SourceStatistics(60, 0, 0, 0, 0.2, 0.01), []),  # above the threshold, but not significant
        (SourceStatistics(10_000, 0, None, 0, 0.02, 0.5), []),
        (SourceStatistics(10_000, 1, None, 0, 0.02, 0.5), ["train-test overlap"]),
    ],
)
def test_a_source_with_significantly_more_than_its_limit_fails(findings: SourceStatistics, failed: list[str]) -> None:
    checks = check_source(findings, RecheckPolicy(), ReviewPolicy(), 0.009)
    assert [check.name for check in checks if not check.has_passed] == failed
    assert len(checks) == (3 if findings.doubtful is None else 4)


def test_a_failed_recheck_may_only_warn() -> None:
    found, policy = SourceStatistics(10_000, 0, 0, 0, 0.5, 0), RecheckPolicy(on_failure="warning")
    checks = check_source(found, policy, ReviewPolicy(), 0.009)
    assert [check.outcome for check in checks] == ["passed", "passed", "warning", "passed"]


def test_the_message_says_why_a_value_above_its_threshold_passes() -> None:
    def describe(found: SourceStatistics) -> list[str]:
        return [check.message.partition("), ")[2] for check in check_source(found, RecheckPolicy(), ReviewPolicy(), 0)]

    _, near_duplicates, drift, doubtful = describe(SourceStatistics(100, 0, 1, 3, 0.2, 0.01))
    assert near_duplicates == "above the threshold of 2.00%, but not significantly (p ≥ 0.001), so the check passes"
    assert drift == "above the threshold of 0.100, but not significantly (p ≥ 0.001), so the check passes"
    assert doubtful == "at most the threshold of 2.00%"
    assert describe(SourceStatistics(10_000, 0, 0, 300, 0, 1))[1] == "significantly above the threshold of 2.00%"
