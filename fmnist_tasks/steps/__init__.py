"""The steps of a run: one function each, which :func:`run_step` runs.

Steps import heavy libraries (TensorFlow, Great Expectations, matplotlib) only where they need them.
"""

from fmnist_tasks.schemas.runs import RESULTS
from fmnist_tasks.steps.data import detect_change, ingest, validate_data
from fmnist_tasks.steps.evaluation import evaluate_base, evaluate_tuned
from fmnist_tasks.steps.gates import accuracy_gate, promotion_gate
from fmnist_tasks.steps.release import promote, publish, verify_release
from fmnist_tasks.steps.step import STEPS, Run, read_result, run_step
from fmnist_tasks.steps.training import choose_base, fine_tune, train

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

for _name in RESULTS:  # the order of a run, which that of the imports is not
    STEPS[_name] = STEPS.pop(_name)
