"""The steps of a run, in their order: one function each, JSON in and JSON out.

The heavy rooms (TensorFlow, Great Expectations, matplotlib) are imported inside the steps that need them.
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
from fmnist_tasks.steps.step import INPUTS, STEPS, Run, run_again

__all__ = [
    "INPUTS",
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
    "run_again",
    "train",
    "validate_data",
    "verify_release",
]
