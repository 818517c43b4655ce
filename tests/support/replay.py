"""Replay the recorded results of steps that train or predict, for tests of the graph around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fmnist_tasks.registry import champion
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.schemas.runs import RESULTS, Result
from fmnist_tasks.steps import STEPS, Run
from tests.support.synthetic import RUN

REPLAYED_STEPS = ("train", "evaluate_base", "fine_tune", "evaluate_tuned")


def replay_steps(
    patch: pytest.MonkeyPatch,
    finished_store: Store,
    changes: Mapping[str, dict[str, Any]] | None = None,
    names: tuple[str, ...] = REPLAYED_STEPS,
) -> None:
    """Replace these steps by functions that return their recorded results, with these changes, for the current run.

    `finished_store` has the records of the finished run; the store of the current run has its blobs.
    """
    for name in names:
        step = STEPS[name]
        recorded = read_record(finished_store, RUN.id, f"{name}-{RUN.parameters.seed}" if step.per_seed else name)
        assert recorded.result
        result = json.dumps(recorded.result | (changes or {}).get(name, {}))
        patch.setitem(STEPS, name, replace(step, function=_make_replay(RESULTS[name], result, step.per_seed)))


def _make_replay(kind: type[Result], recorded: str, per_seed: bool) -> Callable[..., Result]:
    def replay_step(store: Store, run: Run, *arguments: Any) -> Result:
        result: dict[str, Any] = json.loads(recorded.replace(json.dumps(RUN.id), json.dumps(run.id)))
        if "data_fingerprint" in result:  # the current run may have other data than the recorded one
            result["data_fingerprint"] = arguments[0].dataset.fingerprint
        if "serving" in result:
            result["champion"] = _compare_with_equal_champion(store, result)
        return kind.model_validate(result | ({"seed": arguments[-1]} if per_seed else {}))

    return replay_step


def _compare_with_equal_champion(store: Store, result: dict[str, Any]) -> dict[str, Any] | None:
    """The comparison with a champion that predicts like the recorded candidate; None without a champion."""
    if (entry := champion.find_champion(store)) is None:
        return None
    classes = [{"name": row["name"], "only_candidate": 0, "only_champion": 0} for row in result["test"]["classes"]]
    comparison = {
        "accuracy": result["test"]["accuracy"],
        "only_candidate": 0,
        "only_champion": 0,
        "validation_accuracy": 1.0,
        "candidate_validation_accuracy": 1.0,
    }
    return {"version": entry.version, "sequence": entry.sequence, "classes": classes, **comparison}
