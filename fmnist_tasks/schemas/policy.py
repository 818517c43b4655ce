"""The policy of the gates: the thresholds of data and model checks, and what a failed check does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmnist_tasks.schemas.base import Model, Share
from fmnist_tasks.schemas.evaluation import OnFailure

Positive = Annotated[float, Field(gt=0)]
Significance = Annotated[float, Field(gt=0, lt=1)]


class AccuracyPolicy(Model):
    """Limit of the test accuracy."""

    min: Share
    on_failure: OnFailure


class ChampionPolicy(Model):
    """Comparison of the candidate with the champion on the same test images."""

    significance: Significance
    on_significantly_worse: OnFailure
    on_inconclusive: OnFailure


class ClassPolicy(Model):
    """Limit of each class's recall, and its comparison with the champion's."""

    min_recall: Share
    significance: Significance
    on_failure: OnFailure


class CalibrationPolicy(Model):
    """Limit of the expected calibration error."""

    max_error: Share
    on_failure: OnFailure


class OodFamilyPolicy(Model):
    """Limits of one family of out-of-distribution images."""

    min_auroc: Share
    max_fpr99: Share  # false positive rate at 99% true positive rate


class OodPolicy(Model):
    """The families with limits; others are only reported."""

    families: dict[str, OodFamilyPolicy] = Field(min_length=1)
    on_failure: OnFailure


class ServingPolicy(Model):
    """Limits of latency and size."""

    max_single_image_ms: Positive
    max_load_seconds: Positive
    max_bytes: Annotated[int, Field(gt=0)]
    on_failure: OnFailure


class DataPolicy(Model):
    """Limits of the statistical tests of a batch, and of one split of the base dataset against the other."""

    significance: Significance = 0.001  # probability that a good sample fails a kind of test
    # Smaller differences than these pass, even if they are significant.
    min_drift: Share = 0.1  # Kolmogorov-Smirnov distance of a feature
    min_outliers: Share = 0.01  # share of extreme images
    min_label_errors: Share = 0.01  # share of a class beyond the expected one
    max_imbalance: Annotated[float, Field(ge=1)] = 2.0  # of a class in a base split: its images against the mean
    on_split_difference: Literal["reject", "warning"] = "reject"  # if training and test split differ


class ReviewPolicy(Model):
    """Which images of a batch are set aside for review, and when a batch with too many of them is quarantined."""

    # Shares of clean images that may be set aside by mistake, from which thresholds are chosen on validation images.
    label_false_alarm_rate: Share = 0.009
    ood_false_alarm_rate: Share = 0.002
    expected_share: Share = 0.015  # of a clean batch, all checks together
    max_share: Share = 0.05  # fewer never quarantine a batch
    significance: Significance = 0.001  # of the binomial test against `expected_share`


class RecheckPolicy(Model):
    """Thresholds of all accepted batches of a source together."""

    sample_size: Annotated[int, Field(ge=100)] = 20_000  # images of a source, drawn at random
    max_doubtful: Share = 0.02
    max_near_duplicates: Share = 0.02
    max_drift: Share = 0.1  # Kolmogorov-Smirnov distance of a feature
    significance: Significance = 0.001
    on_failure: Literal["reject", "warning"] = "reject"


class Policy(Model):
    """All thresholds, and what a failed check does."""

    accuracy: AccuracyPolicy
    champion: ChampionPolicy
    classes: ClassPolicy
    calibration: CalibrationPolicy
    ood: OodPolicy
    serving: ServingPolicy
    data: DataPolicy = DataPolicy()
    review: ReviewPolicy = ReviewPolicy()
    recheck: RecheckPolicy = RecheckPolicy()
