"""The trigger form of `fmnist_retrain`."""

from __future__ import annotations

from airflow.sdk import Param

from fmnist_tasks.settings import EXACT_TYPE, MAX_CANDIDATES, PROFILES, DagSettings


def build_retrain_form() -> dict[str, Param]:
    """The parameters of a run; their defaults also apply to scheduled runs."""
    default = DagSettings.from_environment().defaults
    return {
        "profile": Param(
            default.profile,
            title="Profile",
            description="Training budget. Fashion-MNIST on two cores: quick: 90 s, 93.5% test accuracy; standard: "
            "3 min, 94.0%; thorough: 20 min, 94.9%.",
            type="string",
            enum=list(PROFILES),
            section="Training",
        ),
        "seed": Param(
            default.seed,
            title="Seed",
            description="The same seed, data and profile on the same kind of machine give the same weights.",
            type="integer",
            minimum=0,
            maximum=2**31 - 1,
            section="Training",
            **EXACT_TYPE,
        ),
        "candidates": Param(
            default.candidates,
            title="Base models",
            description="Number of base models to train, with consecutive seeds, in parallel on several workers. The "
            "one with the lowest validation loss continues.",
            type="integer",
            minimum=1,
            maximum=MAX_CANDIDATES,
            section="Training",
            **EXACT_TYPE,
        ),
        "accuracy_threshold": Param(
            default.accuracy_threshold,
            title="Minimum test accuracy",
            description="0 to 1. Overrides accuracy.min of the policy. Empty: the value of the policy.",
            type=["null", "number"],
            minimum=0,
            maximum=1,
            section="Gates",
        ),
        "policy": Param(
            default.policy,
            title="Policy overrides (JSON)",
            description="Values that replace those of the policy file in this run, for example "
            '{"classes": {"min_recall": 0.8}}. Sections: accuracy, champion, classes, calibration, ood, serving, '
            "data, review, recheck. An unknown key makes the task `ingest` fail.",
            type="object",
            section="Gates",
        ),
        "approval": Param(
            default.approval,
            title="Wait for approval",
            description="If a check puts the candidate on hold, wait up to three days for an approval. Off: reject "
            "it. For scheduled runs, FMNIST_APPROVAL sets this.",
            type="boolean",
            section="Gates",
        ),
        "force": Param(
            default.force,
            title="Retrain even if nothing changed",
            description="Without this, a run with the champion's data, code and parameters ends without training.",
            type="boolean",
            section="Advanced",
        ),
    }
