"""The check of all accepted batches together, by source, in every run: small amounts of poison add up.

A source is a folder below `incoming/` with files of batches, and its images are those of all its batches. A random
sample of them is compared with the training split, as a new batch is, but against other thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from fmnist_tasks.data.incoming import PREFIX
from fmnist_tasks.schemas.data import ImageSet
from fmnist_tasks.schemas.evaluation import Check, make_check
from fmnist_tasks.schemas.policy import RecheckPolicy, ReviewPolicy

NO_FOLDER = "incoming"  # the source of batches that are not in a folder, and of folders of images


@dataclass(frozen=True)
class SourceStatistics:
    """What was found in a sample of a source's images."""

    images: int  # in the sample
    test_copies: int  # images, in the sample or not, that are identical to a test image
    doubtful: int | None  # images whose label the champion doubts; None without a champion
    near_duplicates: int  # of other training or test images
    drift: float  # largest distance of a feature from the training split, 0 to 1
    drift_p_value: float  # of that distance, corrected for the number of features


def group_by_source(image_sets: Iterable[ImageSet]) -> dict[str, list[ImageSet]]:
    """Return the batches by source."""
    sources: dict[str, list[ImageSet]] = {}
    for image_set in image_sets:
        if image_set.keys:  # images from review have no files
            sources.setdefault(find_source(image_set.keys[0]), []).append(image_set)
    return sources


def find_source(key: str) -> str:
    """Return the source of a file in `incoming/`."""
    folder, separator, _ = key.removeprefix(PREFIX).partition("/")
    return folder if separator and not key.endswith("/") else NO_FOLDER


def choose_sample(counts: list[int], size: int) -> list[np.ndarray]:
    """Return sorted positions of a random sample of images, for each of several sets of so many images."""
    total = sum(counts)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:size])
    ends = np.cumsum(counts)
    starts = ends - counts
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in zip(starts, ends, strict=True)]


def check_source(
    found: SourceStatistics, policy: RecheckPolicy, review: ReviewPolicy, label_false_alarm_rate: float
) -> list[Check]:
    """Check a source against the thresholds of the policy; without a champion, labels are not checked.

    A value above its threshold fails only if it is significant, since a source may have few images.
    """
    checks = [
        check_test_copies(found.test_copies),
        _check_share(
            "near-duplicates",
            found.near_duplicates,
            found.images,
            review.expected_share,
            policy.max_near_duplicates,
            policy,
        ),
        make_check(
            "drift",
            found.drift,
            f"≤ {policy.max_drift:.3f}",
            found.drift <= policy.max_drift or found.drift_p_value >= policy.significance,
            f"the largest distance of a feature from the training split is {found.drift:.3f} "
            f"({found.images:,} sampled images, Kolmogorov-Smirnov test, p = {found.drift_p_value:.2g}), "
            f"{_compare(found.drift, policy.max_drift, '.3f', found.drift_p_value, policy)}",
            policy.on_failure,
        ),
    ]
    if found.doubtful is not None:
        expected = max(review.label_false_alarm_rate, label_false_alarm_rate)
        checks += [_check_share("doubtful labels", found.doubtful, found.images, expected, policy.max_doubtful, policy)]
    return checks


def check_test_copies(count: int) -> Check:
    """Check that no image is identical to a test image."""
    message = f"images identical to a test image: {count:,}, expected 0"
    return make_check("train-test overlap", count, "0", not count, message, "reject")


def _check_share(name: str, count: int, images: int, expected: float, threshold: float, policy: RecheckPolicy) -> Check:
    """Check that a share is at most a threshold, or not significantly above what is expected (exact binomial test)."""
    share = count / images
    p_value = float(binomtest(count, images, expected, alternative="greater").pvalue)
    has_passed = share <= threshold or p_value >= policy.significance
    message = (
        f"{name}: {count:,} of {images:,} sampled images ({share:.2%}; {expected:.1%} are expected in clean batches, "
        f"binomial test, p = {p_value:.2g}), {_compare(share, threshold, '.2%', p_value, policy)}"
    )
    return make_check(name, share, f"≤ {threshold:.2%}", has_passed, message, policy.on_failure)


def _compare(value: float, threshold: float, form: str, p_value: float, policy: RecheckPolicy) -> str:
    """Say how a value relates to its threshold; one above it passes if that is not significant."""
    if value <= threshold:
        return f"at most the threshold of {threshold:{form}}"
    if p_value < policy.significance:
        return f"significantly above the threshold of {threshold:{form}}"
    return (
        f"above the threshold of {threshold:{form}}, but not significantly (p ≥ {policy.significance:g}), so the check "
        "passes"
    )
