"""Steps that train or predict, replaced by what they gave in a finished run: for tests of the graph around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fmnist_tasks import steps
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.steps import STEPS, Run
from fmnist_tasks.steps.step import INPUTS, PER_SEED, Result, step
from tests.support.synthetic import RUN

REPLAYED_STEPS = ("train", "evaluate_base", "fine_tune", "evaluate_tuned")


def replay_steps(
    patch: pytest.MonkeyPatch,
    finished_store: Store,
    changes: Mapping[str, Result] | None = None,
    names: tuple[str, ...] = REPLAYED_STEPS,
) -> None:
    """Let these steps end with their recorded results, with these changes, as results of the run that asks.

    `finished_store` has the records of the finished run; the store of the run that asks has its blobs.
    """
    for name in names:
        recorded = read_record(finished_store, RUN.id, f"{name}-{RUN.parameters.seed}" if name in PER_SEED else name)
        result = json.dumps(recorded["result"] | (changes or {}).get(name, {}))
        patch.setitem(STEPS, name, STEPS[name])  # `step` puts another in its place
        patch.setattr(steps, name, step(*INPUTS[name], per_seed=name in PER_SEED)(_make_replay(name, result)))


def _make_replay(name: str, recorded: str) -> Callable[..., Result]:
    def replay_step(store: Store, run: Run, *arguments: Any) -> Result:
        result: Result = json.loads(recorded.replace(json.dumps(RUN.id), json.dumps(run.id)))
        if "data_fingerprint" in result:  # the run may have other data than the recorded one
            result["data_fingerprint"] = arguments[0]["dataset"]["fingerprint"]
        if "champion" in result:
            result["champion"] = _compare_with_equal_champion(store, result)
        return result | ({"seed": arguments[-1]} if name in PER_SEED else {})

    replay_step.__name__ = name
    return replay_step


def _compare_with_equal_champion(store: Store, result: Result) -> Result | None:
    """What `evaluate_tuned` finds of a champion that answers as the recorded candidate does; None if there is none."""
    if (entry := champion.champion(store)) is None:
        return None
    classes = [{"class": row["class"], "only_candidate": 0, "only_champion": 0} for row in result["test"]["classes"]]
    same = {
        "accuracy": result["test"]["accuracy"],
        "only_candidate": 0,
        "only_champion": 0,
        "validation_accuracy": 1.0,
        "candidate_validation_accuracy": 1.0,
    }
    return {"version": entry.version, "sequence": entry.sequence, "classes": classes, **same}
