"""Running a step: it reads the results of earlier steps, saves its own record, and writes the report if the run ends.

A step is a function from the store, the run and the results of earlier steps to its own result. Results are stored in
the records of the steps only; Airflow tasks, commands and tests run a step by its name. A result with `rejection` is
saved like any other, and then the rejection is raised. A step `per_seed` runs once for each seed of the run, which is
its last argument, and saves a record for each.

Until the step ends, its record has the status `running`, so the run does not count as ended. If a step with a result
runs again, its record keeps this result until there is a new one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from fmnist_tasks.alerts import deliver_due_alerts
from fmnist_tasks.errors import FmnistError, IntegrityError, MissingError, RejectedError, StoreError
from fmnist_tasks.memory import read_peak_memory, reset_peak_memory
from fmnist_tasks.registry.pruning_markers import forbid_pruning
from fmnist_tasks.registry.runs import make_run_key, read_record, write_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import save_report
from fmnist_tasks.schemas.base import RunParameters
from fmnist_tasks.schemas.runs import RESULTS, Result, Status, StepRecord, parse_result
from fmnist_tasks.settings import Parameters
from fmnist_tasks.text import replace_surrogates

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Result])


@dataclass(frozen=True)
class Run:
    """One run of the pipeline: its ID, when it was requested, its parameters, and who requested it."""

    id: str
    created: str  # UTC, ISO 8601; part of the version of the release
    parameters: Parameters
    actor: str = "schedule"  # the user who triggered it
    ignored: tuple[str, ...] = ()  # requested keys that are not parameters
    dataset: str = ""  # empty: the default dataset


@dataclass(frozen=True)
class Step:
    """A function, the steps whose results it takes, in order, and whether it runs once for each seed."""

    function: Callable[..., Result]
    inputs: tuple[str, ...]
    per_seed: bool


STEPS: dict[str, Step] = {}
# Parameters that shape models, and those on which only a gate depends; the others decide how a run continues.
_MODEL_PARAMETERS = ("profile", "seed", "candidates")
_GATE_PARAMETERS = ("accuracy_threshold", "policy")
_GATES = {"accuracy_gate", "promotion_gate"}


def step(*inputs: str, per_seed: bool = False) -> Callable[[F], F]:
    """Declare a function as a step that takes the results of `inputs`."""

    def declare(function: F) -> F:
        STEPS[function.__name__] = Step(function, inputs, per_seed)
        return function

    return declare


def run_step(name: str, run: Run, seed: int | None = None, **arguments: Any) -> Any:
    """Run a step on the recorded results of earlier steps, save its record, and return its result.

    Without a seed, a step `per_seed` runs for all seeds of the run, and the result is a list. `arguments` are further
    arguments of the function. Raises :class:`RejectedError` if an earlier step has not succeeded, or if this step
    rejects.
    """
    if STEPS[name].per_seed and seed is None:
        return [run_step(name, run, seed, **arguments) for seed in run.parameters.seeds]
    store = open_default_store(run.dataset)
    recorder = _Recorder(store, run, name if seed is None else _make_record_name(name, seed))
    log.info("%s begins: run %s with %s", recorder.name, run.id, run.parameters.to_json())
    with forbid_pruning(store, f"step {recorder.name} of run {run.id}"):
        results = [read_result(store, run, earlier) for earlier in STEPS[name].inputs]
        recorder.begin(has_inputs=bool(results))
        try:
            result = STEPS[name].function(store, run, *results, *([] if seed is None else [seed]), **arguments)
        except StoreError:
            raise  # a store that does not respond cannot save a record of it
        except Exception as error:
            recorder.fail(error)
            raise
        recorder.end(result)
    if result.rejection:
        raise RejectedError(result.rejection)
    return result


class _Recorder:
    """Saves the record of a step of a run, and the report if the step ends the run."""

    def __init__(self, store: Store, run: Run, name: str) -> None:
        self.store, self.run, self.name = store, run, name
        self._clock = time.monotonic()
        self._record = StepRecord(
            run_id=run.id,
            step=name,
            created=run.created,
            started=datetime.now(UTC).isoformat(),
            actor=run.actor,
            parameters=cast(RunParameters, run.parameters.to_json()),
            ignored=list(run.ignored),
            status="running",
            outcome="has not ended",
            seconds=0.0,
            peak_memory_mb=0,
        )
        reset_peak_memory()

    def begin(self, *, has_inputs: bool) -> None:
        """Save that the step is running, unless it has a result already; a step without inputs starts the run again."""
        if not has_inputs or not _is_done(self.store, self.run, self.name):
            write_record(self.store, self._record)

    def fail(self, error: Exception) -> None:
        """Save why the step failed; if that fails too, only log it, since the caller raises the first error."""
        is_retryable = isinstance(error, OSError)  # dags/fmnist_defaults.py retries the same errors
        try:
            self._save("failed", str(error), retryable=is_retryable)
        except FmnistError as second:
            log.error("%s: the failure could not be saved either: %s", self.name, second)

    def end(self, result: Result) -> None:
        """Save the result."""
        status: Status = "rejected" if result.rejection else "done"
        self._save(status, result.rejection or result.summary, result=result.to_json())

    def _save(self, status: Status, outcome: str, **more: Any) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        usage = {"seconds": seconds, "peak_memory_mb": read_peak_memory()}
        outcome = replace_surrogates(outcome)  # from the name of a file
        record = self._record.model_copy(update={**usage, "status": status, "outcome": outcome, **more})
        write_record(self.store, record)
        if record.ends_run:
            save_report(self.store, self.run.id)
        log.info("%s %s after %.1f s: %s", self.name, status, seconds, outcome)
        deliver_due_alerts()


def read_result(store: Store, run: Run, name: str) -> Any:
    """The result of a step of the run; a list of results, by seed, for a step `per_seed`.

    Raises :class:`RejectedError` if the step has not succeeded.
    """
    if STEPS[name].per_seed:
        return [_read_result(store, run, _make_record_name(name, seed), name) for seed in run.parameters.seeds]
    return _read_result(store, run, name, name)


def _is_done(store: Store, run: Run, name: str) -> bool:
    try:
        return read_record(store, run.id, name).status == "done"
    except (MissingError, IntegrityError):
        return False


def _read_result(store: Store, run: Run, name: str, step: str) -> Result:
    record = read_record(store, run.id, name)
    if record.status == "running":
        raise RejectedError(f"{name} of run {run.id} is running, or was killed before it ended; run it again first")
    if record.status != "done":
        raise RejectedError(
            f"{name} of run {run.id} has the status {record.status}, so later steps cannot run; run it again first"
        )
    parameters = run.parameters.to_json()
    required = _MODEL_PARAMETERS + (_GATE_PARAMETERS if step in _GATES else ())
    if changed := [key for key in required if record.parameters.get(key) != parameters[key]]:
        raise RejectedError(
            f"{name} of run {run.id} was run with a different {' and '.join(changed)}; run it again first"
        )
    return parse_result(RESULTS[step], record, make_run_key(run.id, f"{name}.json"))


def _make_record_name(name: str, seed: object) -> str:
    return f"{name}-{seed}"
