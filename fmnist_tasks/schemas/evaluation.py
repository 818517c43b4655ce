"""Metrics of a model, checks and verdicts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmnist_tasks.schemas.base import Count, Interval, Model, RunId, Sha256, Share, Version

OnFailure = Literal["reject", "hold"]
Outcome = Literal["passed", "warning", "hold", "reject"]
Decision = Literal["promote", "hold", "reject"]


class Identity(Model):
    """The run, model, data and code that metrics belong to."""

    run_id: RunId
    model_sha256: Sha256
    data_fingerprint: Sha256
    code_digest: Sha256


class Check(Model):
    """A check: its value, threshold, outcome and message."""

    name: str
    value: float | str | None  # None: missing or not a number
    threshold: str
    outcome: Outcome
    message: str  # one sentence

    @property
    def has_passed(self) -> bool:
        """Whether the check passed, or only warns."""
        return self.outcome in {"passed", "warning"}


def make_check(
    name: str,
    value: float | str | None,
    threshold: str,
    has_passed: bool,
    message: str,
    on_failure: OnFailure | Literal["warning"] = "reject",
) -> Check:
    """Return a check whose outcome is `passed`, or `on_failure` if it has not passed."""
    outcome: Outcome = "passed" if has_passed else on_failure
    return Check(name=name, value=value, threshold=threshold, outcome=outcome, message=message)


class Verdict(Identity):
    """The decision of a gate on a model, with every check."""

    decision: Decision
    checks: list[Check]

    @property
    def failures(self) -> str:
        """The messages of all checks that did not pass, joined by semicolons."""
        return "; ".join(check.message for check in self.checks if not check.has_passed) or "there are no checks"


class ClassMetrics(Model):
    """Metrics of one class, 0 to 1, or their means over all classes."""

    precision: Share
    recall: Share
    f1: Share
    accuracy: Share  # one-vs-rest: (true positives + true negatives) / images


class NamedClassMetrics(ClassMetrics):
    """Metrics of one class, with its name and number of images."""

    name: str
    images: Count


class Classification(Model):
    """Metrics of a classifier on labelled images."""

    images: Count
    accuracy: Share
    interval: Interval  # 95% confidence interval of the accuracy
    near_duplicates: Count = 0  # images with a near-duplicate among the training images
    accuracy_without_near_duplicates: Share | None = None  # of the other images; None if all or none are
    confusion: list[list[Count]]  # rows: true class, columns: predicted class
    classes: Annotated[list[NamedClassMetrics], Field(min_length=1)]
    means: ClassMetrics


class ConfidenceBin(Model):
    """One bin of the calibration error: number, mean confidence and accuracy of its images."""

    images: Count
    confidence: Share
    accuracy: Share


class Calibration(Model):
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599)."""

    error: Share
    interval: Interval  # 95%, bootstrap
    bins: list[ConfidenceBin]


class SelectivePrediction(Model):
    """The largest share of images, most confident first, that is classified with a given accuracy."""

    accuracy: Share
    coverage: Share
    confidence: Share | None  # the lowest among the covered images; None if there are none
    curve: list[Annotated[list[Share], Field(min_length=2, max_length=2)]]  # pairs of coverage and accuracy


class Differences(Model):
    """Numbers of images that only the candidate or only the champion classifies correctly."""

    only_candidate: Count
    only_champion: Count


class ClassDifferences(Differences):
    """The same numbers for the images of one class."""

    name: str


class ChampionComparison(Differences):
    """The comparison of the candidate with the champion, on the same images."""

    version: Version
    sequence: int  # of the log entry that made the champion
    accuracy: Share  # of the champion, like `validation_accuracy`
    classes: Annotated[list[ClassDifferences], Field(min_length=1)]
    validation_accuracy: Share
    candidate_validation_accuracy: Share


class OodFamily(Model):
    """Detection of one family of out-of-distribution images."""

    auroc: Share
    fpr99: Share  # false positive rate at 99% true positive rate
    detected: Share  # share of the family above the threshold
    in_training: bool  # whether the probe is fitted on images of this family


class Example(Model):
    """One image in the table of predictions."""

    truth: str
    answer: str
    predicted_class: str
    probability: Share
    ood_score: float
    in_distribution: bool


class OodDetection(Model):
    """Out-of-distribution detection, on test images and on families of OOD images."""

    threshold: float  # of `ood_score`
    accepted: Share  # share of the test images that are not above the threshold
    families: dict[str, OodFamily]
    examples: list[Example]


class Serving(Model):
    """Latency and size of the model."""

    single_image_ms: float  # latency of one image, 95th percentile
    load_seconds: float
    bytes: Count  # of the file


class Evaluation(Identity):
    """Metrics of a model on the test images."""

    test: Classification


class CandidateMetrics(Model):
    """Metrics of a candidate, which its release keeps."""

    test: Classification
    calibration: Calibration
    selective_prediction: SelectivePrediction
    ood: OodDetection
    champion: ChampionComparison | None  # None: no champion yet
    serving: Serving


class CandidateEvaluation(CandidateMetrics, Evaluation):
    """All metrics of a candidate, and which candidate it is."""

    temperature: float  # the logits are divided by it
