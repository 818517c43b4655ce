"""Records of the steps of a run, and the results of each step."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.schemas.base import (
    Count,
    Document,
    Model,
    Reference,
    RunId,
    RunParameters,
    Sha256,
    Share,
    Time,
    Version,
    describe_faults,
)
from fmnist_tasks.schemas.data import (
    Dataset,
    IncomingFile,
    NewBatch,
    QuarantinedBatch,
    UnreadableBatch,
    WaitingFile,
    WithdrawnBatch,
)
from fmnist_tasks.schemas.evaluation import CandidateEvaluation, ChampionComparison, Check, Evaluation, Verdict
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.schemas.releases import Code, Machine

Status = Literal["running", "done", "rejected", "failed"]


class Result(Model):
    """The result of a step; each step has its own subclass."""

    summary: str  # one sentence
    rejection: str | None = None  # the reason, if this step rejects the run
    pictures: dict[str, Reference] = Field(default_factory=dict)  # PNG, by name


class IngestResult(Result):
    """The base dataset and the new batches."""

    title: str
    source: str
    declared: dict[Literal["train", "test"], int | None]  # number of images of each split; None: not declared
    dataset: Dataset
    batches: list[NewBatch]
    unreadable: list[UnreadableBatch]
    waiting: list[WaitingFile]
    withdrawn: list[WithdrawnBatch]
    code: Code
    machine: Machine


class AddedBatch(Model):
    """A batch that this run added to the dataset."""

    name: str
    files: list[IncomingFile]


class ValidationResult(Result):
    """The outcomes of the data checks, and the dataset to train on."""

    dataset: Dataset
    checks: dict[str, list[Check]]  # by split or batch
    drift: dict[str, float | None]  # by split or batch: distance from its reference, 0 to 1
    accepted: list[AddedBatch]
    quarantined: list[QuarantinedBatch]
    waiting: list[WaitingFile]
    set_aside: dict[str, Count] = Field(default_factory=dict)  # images with findings, by batch
    in_review: Count = 0  # images of all batches about which nobody has decided
    oldest_in_review: Time | None = None  # when the batch of the oldest one was accepted
    # Rows of test images that have a near-duplicate among the training images.
    test_near_duplicates: list[Count] = Field(default_factory=list)
    data_docs: str


class ChangeResult(Result):
    """Whether data, code or parameters have changed since the champion was trained, and the seeds to train."""

    changed: bool
    seeds: list[int]
    reasons: list[str]
    champion: str | None


class Curves(Model):
    """Learning curves: one value for each epoch."""

    loss: list[float]
    val_loss: list[float]
    accuracy: list[float]
    val_accuracy: list[float]
    learning_rate: list[float]
    seconds: list[float]


class TrainingResult(Result):
    """A trained model, and its metrics on the validation split."""

    seed: int
    curves: Curves
    best_epoch: int  # counted from 1
    train_accuracy: Share  # in that epoch, on augmented images and with dropout
    validation_accuracy: Share
    validation_loss: float  # after temperature scaling
    temperature: float
    model: Reference
    weights: Count


class CandidateModel(Model):
    """One of the base models that were trained, by its seed."""

    seed: int
    validation_accuracy: Share
    validation_loss: float
    chosen: bool


class BaseModelResult(TrainingResult):
    """The chosen base model, and all that were trained."""

    candidates: list[CandidateModel]


class EvaluationResult(Result, Evaluation):
    """Metrics of the base model."""


class Candidate(Model):
    """The candidate: the base or the tuned model."""

    model: Reference
    ood_threshold: float
    validation_accuracy: Share
    temperature: float


class TunedModelResult(TrainingResult):
    """The tuned model, and the choice between base and tuned model."""

    chosen: Literal["base", "tuned"]
    candidate: Candidate


class CandidateEvaluationResult(Result, CandidateEvaluation):
    """Metrics of the candidate."""

    predictions: Reference  # arrays `probabilities` and `ood_score`, .npz


class GateResult(Result, Verdict):
    """The verdict of a gate."""

    @property
    def conclusion(self) -> str:
        """The decision for users: a model that passes the accuracy gate is not promoted yet."""
        return "passed" if self.decision == "promote" else self.decision


class PromotionGateResult(GateResult):
    """The verdict of the promotion gate, with the champion and the policy of that time."""

    champion: ChampionComparison | None
    policy: Policy
    policy_digest: Sha256

    @property
    def conclusion(self) -> str:
        """The decision."""
        return self.decision


class PublishResult(Result):
    """The published release."""

    version: Version
    manifest_sha256: Sha256
    model: Reference
    location: str


class VerificationResult(Result):
    """The release that was verified to be the candidate that was evaluated."""

    version: Version
    manifest_sha256: Sha256


class PromotionResult(Result):
    """The entry in the champion log."""

    version: Version
    sequence: int
    accuracy: Share
    is_current: bool  # false if the champion has changed in the meantime


class StepRecord(Document):
    """`runs/RUN/STEP.json`: the record of a step."""

    run_id: RunId
    step: str
    created: Time  # when the run was requested
    started: Time
    actor: str
    parameters: RunParameters
    ignored: list[str] = Field(default_factory=list)  # keys of the request that are not parameters
    status: Status
    outcome: str  # one sentence
    seconds: float
    peak_memory_mb: Count
    retryable: bool | None = None  # only of a failed step
    result: dict[str, Any] | None = None  # see `parse_result`

    @property
    def found_no_change(self) -> bool:
        """Whether this is the record of a `detect_change` that found no change."""
        return self.step == "detect_change" and self.result is not None and self.result.get("changed") is False

    @property
    def ends_run(self) -> bool:
        """Whether the run ends with this step: it promoted, failed, found no change or was rejected."""
        return self.status != "done" or self.step == "promote" or self.found_no_change


# By step; the record of a step that runs for each seed is named with the seed, after a hyphen.
RESULTS: dict[str, type[Result]] = {
    "ingest": IngestResult,
    "validate_data": ValidationResult,
    "detect_change": ChangeResult,
    "train": TrainingResult,
    "choose_base": BaseModelResult,
    "evaluate_base": EvaluationResult,
    "accuracy_gate": GateResult,
    "fine_tune": TunedModelResult,
    "evaluate_tuned": CandidateEvaluationResult,
    "promotion_gate": PromotionGateResult,
    "publish": PublishResult,
    "verify_release": VerificationResult,
    "promote": PromotionResult,
}

R = TypeVar("R", bound=Result)


def parse_result(kind: type[R], record: StepRecord, key: str) -> R:
    """Return the result in a record; raises :class:`IntegrityError` with the key if it is not of that kind."""
    try:
        return kind.model_validate(record.result)
    except ValidationError as error:
        raise IntegrityError(
            f"{key}: result: {describe_faults(error)}; it is not used. Clear the task that wrote it"
        ) from error
