"""Small valid documents, for tests in which most fields do not matter."""

from __future__ import annotations

import hashlib
from typing import Any

from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import Dataset, ImageSet
from fmnist_tasks.schemas.evaluation import (
    Calibration,
    ChampionComparison,
    ClassDifferences,
    Classification,
    ClassMetrics,
    NamedClassMetrics,
    OodDetection,
    OodFamily,
    SelectivePrediction,
    Serving,
)
from fmnist_tasks.schemas.releases import (
    Code,
    Machine,
    ReleaseFacts,
    ReleaseMetrics,
    ReleaseVerdict,
    ValidationAccuracy,
)
from fmnist_tasks.schemas.runs import StepRecord
from fmnist_tasks.settings import Parameters
from tests.support import synthetic


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_reference(text: str) -> Reference:
    return Reference(uri=f"blobs/sha256/{digest(text)}", sha256=digest(text), bytes=len(text))


def make_dataset(*blobs: Reference, classes: tuple[str, ...] = ("shirt", "bag")) -> Dataset:
    """Return a dataset whose base splits are not stored, and whose batches are the blobs."""
    base = [
        ImageSet(split=split, source="synthetic", images=2, blob=make_reference(f"{split} images"))
        for split in ("train", "test")
    ]
    batches = [ImageSet(split="train", source="incoming/b.npz", images=2, blob=blob) for blob in blobs]
    properties = synthetic.PROPERTIES.model_copy(update={"classes": list(classes)})
    return Dataset(**dict(properties), image_sets=[*base, *batches], fingerprint=digest("data"))


def make_metrics(classes: tuple[str, ...] = ("shirt", "bag"), accuracy: float = 0.95) -> ReleaseMetrics:
    means = {"precision": accuracy, "recall": accuracy, "f1": accuracy, "accuracy": accuracy}
    families = read_policy({}).ood.families
    return ReleaseMetrics(
        validation_accuracy=ValidationAccuracy(base=accuracy, tuned=accuracy),
        base_test_accuracy=accuracy,
        test=Classification(
            images=2 * len(classes),
            accuracy=accuracy,
            interval=[accuracy, accuracy],
            confusion=[[2 * (row == column) for column in range(len(classes))] for row in range(len(classes))],
            classes=[NamedClassMetrics(name=name, images=2, **means) for name in classes],
            means=ClassMetrics(**means),
        ),
        ood=OodDetection(
            threshold=1.0,
            accepted=0.99,
            families={name: OodFamily(auroc=1.0, fpr99=0.0, detected=1.0, in_training=False) for name in families},
            examples=[],
        ),
        calibration=Calibration(error=0.01, interval=[0.0, 0.02], bins=[]),
        selective_prediction=SelectivePrediction(accuracy=0.99, coverage=0.8, confidence=0.9, curve=[]),
        champion=None,
        serving=Serving(single_image_ms=1.0, load_seconds=1.0, bytes=5),
    )


def make_facts(model: str = "model", **changes: Any) -> ReleaseFacts:
    """Return the facts of a release whose model has the bytes of `model`, with some fields changed."""
    classes = tuple(changes.get("classes", ("shirt", "bag")))
    facts: dict[str, Any] = {
        "title": "Synthetic images",
        "classes": list(classes),
        "run_id": f"run-of-{model}",
        "created": "2026-11-23T02:00:00+00:00",
        "model_sha256": digest(model),
        "parameters": Parameters(profile="quick").to_json(),
        "dataset": make_dataset(classes=classes),
        "source": "synthetic",
        "drift": {"training": 0.01},
        "code": Code(digest=digest("code"), versions={}),
        "machine": Machine(host="h", system="s", processor="p", cores=2, python="3.11"),
        "chosen": "tuned",
        "ood_threshold": 1.0,
        "temperature": 1.0,
        "metrics": make_metrics(classes),
        "policy": read_policy({}),
        "policy_digest": digest("policy"),
        "verdict": ReleaseVerdict(decision="promote", checks=[], approval=None),
    }
    return ReleaseFacts(**facts | changes)


def make_record(run_id: str, step: str, **changes: Any) -> StepRecord:
    """Return the record of a successful step, with some fields changed."""
    fields: dict[str, Any] = {
        "created": "2026-11-23T02:00:00+00:00",
        "started": "2026-11-23T02:00:01+00:00",
        "actor": "schedule",
        "parameters": Parameters().to_json(),
        "status": "done",
        "outcome": "as expected",
        "seconds": 1.0,
        "peak_memory_mb": 1,
    }
    return StepRecord(run_id=run_id, step=step, **fields | changes)


def save_record(store: Store, run_id: str, step: str, **changes: Any) -> None:
    write_record(store, make_record(run_id, step, **changes))


def copy_facts(facts: ReleaseFacts, **changes: Any) -> ReleaseFacts:
    """Return a copy of a release's facts, with some fields changed."""
    return ReleaseFacts(**{name: getattr(facts, name) for name in ReleaseFacts.model_fields} | changes)


def make_comparison(
    only_candidate: int,
    only_champion: int,
    candidate: float = 0.94,
    champion: float = 0.94,
    classes: list[tuple[int, int]] | None = None,
) -> ChampionComparison:
    """A comparison with the champion; `classes` has the images that only one of them classifies correctly, by class."""
    return ChampionComparison(
        version="v1",
        sequence=1,
        accuracy=0.93,
        only_candidate=only_candidate,
        only_champion=only_champion,
        candidate_validation_accuracy=candidate,
        validation_accuracy=champion,
        classes=[
            ClassDifferences(name=name, only_candidate=gained, only_champion=lost)
            for name, (gained, lost) in zip(("shirt", "bag"), classes or [(0, 0), (0, 0)], strict=True)
        ],
    )
