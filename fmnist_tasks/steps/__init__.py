"""The steps of a run, in order: one function each, which :func:`run_step` runs.

Steps import heavy libraries (TensorFlow, Great Expectations, matplotlib) only where they need them.
"""

from fmnist_tasks.steps.data import detect_change, ingest, validate_data
from fmnist_tasks.steps.models import (
    accuracy_gate,
    choose_base,
    evaluate_base,
    evaluate_tuned,
    fine_tune,
    promotion_gate,
    train,
)
from fmnist_tasks.steps.release import promote, publish, verify_release
from fmnist_tasks.steps.step import STEPS, Run, read_result, run_step

__all__ = [
    "STEPS",
    "Run",
    "accuracy_gate",
    "choose_base",
    "detect_change",
    "evaluate_base",
    "evaluate_tuned",
    "fine_tune",
    "ingest",
    "promote",
    "promotion_gate",
    "publish",
    "read_result",
    "run_step",
    "train",
    "validate_data",
    "verify_release",
]
