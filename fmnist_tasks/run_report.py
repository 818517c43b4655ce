"""The report of a run, from the records of its steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from fmnist_tasks.errors import IntegrityError, StoreError
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import find_records, make_run_key
from fmnist_tasks.registry.store import Store, map_readable, require_max_size
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.runs import RESULTS, Result, StepRecord, parse_result

log = logging.getLogger(__name__)

_MAX_FIGURE = 8 << 20  # bytes; ours have at most 300 thousand


@dataclass(frozen=True)
class RecordedRun:
    """What can be read of a run: its records and results, by step name, and the faults of the others."""

    records: dict[str, StepRecord]
    results: dict[str, Result]
    faults: list[str] = field(default_factory=list)


def read_run(store: Store, run_id: str, *, require_signature: bool = False) -> RecordedRun:
    """Read the records of a run. One that cannot be read is a fault, and does not hide the others."""
    found, errors = find_records(store, run_id, require_signature=require_signature)
    records: dict[str, StepRecord] = {}
    results: dict[str, Result] = {}
    for step, record in found.items():
        try:
            results |= parse_results({step: record})
        except IntegrityError as error:
            errors.append(error)
        else:
            records[step] = record
    return RecordedRun(records, results, [str(error) for error in errors])


def save_report(store: Store, run_id: str) -> None:
    """Write the report of a run to `runs/RUN/report.html`; an error is only logged, since the run has ended."""
    try:
        report = render_run(store, run_id, read_run(store, run_id, require_signature=True))
        store.put(make_run_key(run_id, "report.html"), report)
    except StoreError:
        raise  # the task is retried
    except Exception as error:  # whatever a damaged record or figure raises
        log.exception("the report of run %s could not be written: %s", run_id, error)


def render_run(store: Store, run_id: str, run: RecordedRun) -> bytes:
    """The report of a run as one self-contained HTML page."""
    from fmnist_tasks.evaluation.report import render_report

    figures, faults = find_figures(store, run.results)
    return render_report(f"Run {run_id}", run.records, run.results, figures, [*run.faults, *map(str, faults)])


def parse_results(records: dict[str, StepRecord]) -> dict[str, Result]:
    """The results in the records of a run, by step name; raises :class:`IntegrityError` for an unknown step."""
    results = {}
    for step, record in records.items():
        key = f"runs/{record.run_id}/{step}.json"
        if record.result is None:
            continue
        if (kind := RESULTS.get(step.partition("-")[0])) is None:
            raise IntegrityError(f"{key}: no step has this name, so it is not used; delete it")
        results[step] = parse_result(kind, record, key)
    return results


def read_figures(store: Store, results: dict[str, Result]) -> dict[str, bytes]:
    """All figures of the steps, as PNG bytes by name; raises :class:`IntegrityError` if one was changed."""
    figures, faults = find_figures(store, results)
    if faults:
        raise faults[0]
    return figures


def find_figures(store: Store, results: dict[str, Result]) -> tuple[dict[str, bytes], list[Exception]]:
    """The figures of :func:`read_figures` that are intact, and the faults of the others."""
    blobs: dict[str, Reference] = {}
    for result in results.values():
        blobs |= result.pictures

    def read(name: str) -> tuple[str, bytes]:
        require_max_size(blobs[name].uri, blobs[name].bytes, _MAX_FIGURE)
        return name, get_verified(store, blobs[name])

    figures, faults = map_readable(read, blobs)
    return dict(figures), faults
