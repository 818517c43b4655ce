"""Manifests of releases, and entries of the champion log."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from fmnist_tasks.schemas.base import Document, Model, Reference, RunId, RunParameters, Sha256, Share, Time, Version
from fmnist_tasks.schemas.data import Dataset
from fmnist_tasks.schemas.evaluation import CandidateMetrics, Check, Decision
from fmnist_tasks.schemas.policy import Policy

Action = Literal["promote", "rollback", "withdraw", "restore"]


class Code(Model):
    """The code that trained and evaluated a model."""

    digest: Sha256
    versions: dict[str, str]  # of the libraries that affect a model, by name


class Machine(Model):
    """The machine on which a run started."""

    host: str
    system: str
    processor: str
    cores: int | None
    python: str


class Approval(Model):
    """The approval of a candidate on hold: by whom, when and why."""

    by: str
    at: Time
    reason: str


class ReleaseVerdict(Model):
    """The verdict of the promotion gate, and the approval if there was one."""

    decision: Decision
    checks: list[Check]
    approval: Approval | None


class ValidationAccuracy(Model):
    """Validation accuracy of the base model and of the tuned model."""

    base: Share
    tuned: Share


class ReleaseMetrics(CandidateMetrics):
    """All metrics of a release."""

    validation_accuracy: ValidationAccuracy
    base_test_accuracy: Share


class ReleaseFacts(Model):
    """Everything in a manifest but version and files."""

    title: str
    classes: list[str]
    run_id: RunId
    created: Time  # when the run was requested
    model_sha256: Sha256
    parameters: RunParameters
    dataset: Dataset
    source: str
    drift: dict[str, float | None]
    code: Code
    machine: Machine
    chosen: Literal["base", "tuned"]
    ood_threshold: float
    temperature: float
    metrics: ReleaseMetrics
    policy: Policy
    policy_digest: Sha256
    verdict: ReleaseVerdict

    @model_validator(mode="after")
    def _require_measured_families(self) -> Self:
        if missing := sorted(self.policy.ood.families.keys() - self.metrics.ood.families.keys()):
            raise ValueError(f"metrics.ood.families lacks {', '.join(missing)}, for which the policy has limits")
        return self


class Manifest(ReleaseFacts, Document):
    """`releases/VERSION/manifest.json`."""

    version: Version
    files: dict[str, Reference]

    @classmethod
    def migrate(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Add the properties of the dataset. Version 0.2 treated every dataset like Fashion-MNIST.

        It did not compare a candidate with a champion of other classes, but said so, as the verdict still does.
        """
        dataset, metrics = content.get("dataset"), content.get("metrics")
        if not isinstance(dataset, dict) or not isinstance(metrics, dict):
            return content
        if isinstance(champion := metrics.get("champion"), dict) and "other_classes" in champion:
            content = content | {"metrics": metrics | {"champion": None}}
        image_format = {"height": 28, "width": 28, "channels": 1, "horizontal_flip": True, "upright": True}
        return content | {"dataset": {"image_format": image_format, "ood_label": "not clothing"} | dataset}

    @model_validator(mode="after")
    def _require_model(self) -> Self:
        if "model.h5" not in self.files:
            raise ValueError("files lacks model.h5")
        return self


class Entry(Document):
    """`champion/SEQUENCE.json`: one decision about a release."""

    sequence: Annotated[int, Field(ge=1)]
    version: Version
    action: Action
    reason: str
    time: Time  # by the store's clock
    write_id: str  # identifies a write whose response was lost
    actor: str
    replaces: Version | None = None  # the champion before a promotion or a rollback
    # Digests of the release that this entry promotes or withdraws.
    model_sha256: str | None = None
    inputs: str | None = None
    # SHA-256 of the stored bytes of the release's manifest, and of the previous entry.
    manifest_sha256: str | None = None
    previous_sha256: str | None = None
    _signed_by: str | None = PrivateAttr(default=None)  # ID of the key; not part of the document

    @property
    def signed_by(self) -> str | None:
        """The ID of the key that signed the entry; None if it is unsigned."""
        return self._signed_by

    def copy_signed_by(self, key_id: str | None) -> Self:
        """Return a copy of the entry with the ID of the key that signed it."""
        entry = self.model_copy()
        entry._signed_by = key_id
        return entry

    @property
    def changes_champion(self) -> bool:
        """Whether this entry makes its release the champion."""
        return self.action in {"promote", "rollback"}
