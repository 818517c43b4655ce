"""The policy of the gates: the thresholds of the model checks, and what a failed check does."""

from __future__ import annotations

from typing import Annotated

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


class Policy(Model):
    """All thresholds of the model checks, and what a failed check does."""

    accuracy: AccuracyPolicy
    champion: ChampionPolicy
    classes: ClassPolicy
    calibration: CalibrationPolicy
    ood: OodPolicy
    serving: ServingPolicy
