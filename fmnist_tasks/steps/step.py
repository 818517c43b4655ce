"""What every step of a run has around it: the store, a record of what it did, one log line at each end, the report.

A step is a function from the store, the run and the results of earlier steps (JSON) to its own result (JSON). A
result must have `summary`, one sentence. A result with `rejection` is kept like any other and then raised, so that
the run stops and what was found can be read. A step `per_seed` runs once for each seed of the run, which is its last
argument, and keeps a record for each.

Until it ends, the record of a step says `running`, so that nobody takes its run for one that has ended. A step that has
a result and runs again keeps that one until it has another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, update_wrapper
from typing import Any, Concatenate, ParamSpec

from fmnist_tasks.alerts import flush
from fmnist_tasks.errors import FmnistError, IntegrityError, MissingError, RejectedError, StoreError
from fmnist_tasks.memory import read_peak_memory, reset_peak_memory
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.pruning_flag import forbid_pruning
from fmnist_tasks.registry.runs import read_record, read_records, run_key, write_record
from fmnist_tasks.registry.store import Store, open_store, side_by_side
from fmnist_tasks.settings import Parameters, read_store_uri

log = logging.getLogger(__name__)

Result = dict[str, Any]
P = ParamSpec("P")


@dataclass(frozen=True)
class Run:
    """One run of the pipeline: its id, when it was requested, its parameters, and who started it."""

    id: str
    created: str  # UTC, ISO 8601; part of the version that the run publishes
    parameters: Parameters
    actor: str = "schedule"  # the user who triggered it
    ignored: tuple[str, ...] = ()  # keys of what was asked that are no parameter


STEPS: dict[str, Callable[..., Result]] = {}
INPUTS: dict[str, tuple[str, ...]] = {}  # by step: the steps whose results it takes, in order
PER_SEED: set[str] = set()
_SHAPING = ("profile", "seed", "candidates")  # parameters that shape models; the others decide what becomes of them


def step(
    *inputs: str, per_seed: bool = False
) -> Callable[[Callable[Concatenate[Store, Run, P], Result]], Callable[Concatenate[Run, P], Result]]:
    """Declare a function as a step that takes the results of `inputs`."""

    def declare(function: Callable[Concatenate[Store, Run, P], Result]) -> Callable[Concatenate[Run, P], Result]:
        step_name = function.__name__

        def run_step(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            store = open_store(read_store_uri())
            name = _record_name(step_name, args[-1]) if per_seed else step_name
            log.info("%s begins: run %s with %s", name, run.id, run.parameters.as_json())
            record: Result = {
                "created": run.created,
                "parameters": run.parameters.as_json(),
                "started": datetime.now(UTC).isoformat(),
                "actor": run.actor,
                **({"ignored": list(run.ignored)} if run.ignored else {}),
            }
            clock = time.monotonic()
            reset_peak_memory()

            def keep(status: str, outcome: str, **result: Result) -> None:
                seconds = round(time.monotonic() - clock, 3)
                usage = {"seconds": seconds, "peak_memory_mb": read_peak_memory()}
                write_record(store, run.id, name, {**record, **usage, "status": status, "outcome": outcome, **result})
                try:
                    records = read_records(store, run.id, to_act=True)
                    store.put(run_key(run.id, "report.html"), build_report(store, run.id, records))
                except IntegrityError as error:  # which the steps that need the record will raise
                    log.error("%s: the report could not be written: %s", name, error)
                log.info("%s %s after %.1f s: %s", name, status, seconds, outcome)
                flush()

            with forbid_pruning(store, f"step {name} of run {run.id}"):
                if not inputs or not _is_done(store, run, name):
                    begun = {"seconds": 0.0, "peak_memory_mb": 0, "status": "running", "outcome": "has not ended"}
                    write_record(store, run.id, name, record | begun)
                try:
                    result = function(store, run, *args, **kwargs)
                except StoreError:
                    raise  # a store that does not answer now cannot keep a record of that either
                except Exception as error:
                    record["retryable"] = isinstance(error, OSError)  # as dags/fmnist_defaults.py retries it
                    try:
                        keep("failed", str(error))
                    except FmnistError as second:  # the first error is the one to report
                        log.error("%s: the failure could not be recorded either: %s", name, second)
                    raise
                rejection = result.get("rejection")
                keep("rejected" if rejection else "done", rejection or result["summary"], result=result)
            if rejection:
                raise RejectedError(rejection)
            return result

        update_wrapper(run_step, function)
        STEPS[step_name], INPUTS[step_name] = run_step, inputs
        if per_seed:
            PER_SEED.add(step_name)
        return run_step

    return declare


def run_again(name: str, run: Run) -> Any:
    """Run one step with the recorded results of the steps before it, for each seed if it is one per seed."""
    store = open_store(read_store_uri())
    inputs = [result_of(store, run, earlier) for earlier in INPUTS[name]]
    if name in PER_SEED:
        return [STEPS[name](run, *inputs, seed) for seed in run.parameters.seeds]
    return STEPS[name](run, *inputs)


def result_of(store: Store, run: Run, name: str) -> Any:
    """What a step of the run ended with, for each seed if it is one per seed.

    Raises :class:`RejectedError` if it did not end well.
    """
    if name in PER_SEED:
        return [_ended_well(store, run, _record_name(name, seed)) for seed in run.parameters.seeds]
    return _ended_well(store, run, name)


def _is_done(store: Store, run: Run, name: str) -> bool:
    try:
        return bool(read_record(store, run.id, name)["status"] == "done")
    except (MissingError, IntegrityError):
        return False


def _ended_well(store: Store, run: Run, name: str) -> Result:
    record = read_record(store, run.id, name)
    if record["status"] == "running":
        raise RejectedError(f"{name} of run {run.id} is running, or was stopped before it ended: run it again first")
    if record["status"] != "done":
        raise RejectedError(f"{name} of run {run.id} was {record['status']}: what follows it cannot run")
    now = run.parameters.as_json()
    if other := [one for one in _SHAPING if record["parameters"].get(one) != now[one]]:
        raise RejectedError(f"{name} of run {run.id} had another {' and '.join(other)}: run it again first")
    result: Result = record["result"]
    return result


def _record_name(name: str, seed: object) -> str:
    return f"{name}-{seed}"


def build_report(store: Store, run_id: str, records: dict[str, dict[str, Any]]) -> bytes:
    """What the records tell of the run, as one HTML page."""
    from fmnist_tasks.evaluation.report import render_report

    return render_report(f"Run {run_id}", records, read_pictures(store, records))


def read_pictures(store: Store, records: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """All pictures that the steps made, as PNG bytes by name."""
    blobs: dict[str, dict[str, Any]] = {}
    for record in records.values():
        blobs |= record.get("result", {}).get("pictures", {})
    return dict(zip(blobs, side_by_side(partial(get_verified, store), blobs.values()), strict=True))
