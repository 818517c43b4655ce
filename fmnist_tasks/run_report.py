"""The report of a run, from the records of its steps."""

from __future__ import annotations

import logging
from functools import partial

from fmnist_tasks.errors import READ_ERRORS, IntegrityError
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import make_run_key, read_records
from fmnist_tasks.registry.store import Store, map_parallel, require_max_size
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.runs import RESULTS, Result, StepRecord, parse_result

log = logging.getLogger(__name__)

_MAX_FIGURE = 8 << 20  # bytes; ours have at most 300 thousand


def save_report(store: Store, run_id: str) -> None:
    """Write the report of a run that has ended to `runs/RUN/report.html`; only log it if a record cannot be read."""
    try:
        records = read_records(store, run_id, require_signature=True)
        store.put(make_run_key(run_id, "report.html"), render_run(store, run_id, records))
    except READ_ERRORS as error:  # the Releases page shows the report without the record that the error names
        log.error("the report of run %s could not be written: %s", run_id, error)


def render_run(store: Store, run_id: str, records: dict[str, StepRecord]) -> bytes:
    """The report of a run as one self-contained HTML page."""
    from fmnist_tasks.evaluation.report import render_report

    results = parse_results(records)
    return render_report(f"Run {run_id}", records, results, read_figures(store, results))


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
    blobs: dict[str, Reference] = {}
    for result in results.values():
        blobs |= result.pictures
    for reference in blobs.values():
        require_max_size(reference.uri, reference.bytes, _MAX_FIGURE)
    return dict(zip(blobs, map_parallel(partial(get_verified, store), blobs.values()), strict=True))
