"""Tables for users and JSON for programs, on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist_tasks.registry.runs import make_run_key
from fmnist_tasks.registry.store import Store
from fmnist_tasks.run_report import RecordedRun
from fmnist_tasks.schemas.runs import (
    BaseModelResult,
    CandidateEvaluationResult,
    EvaluationResult,
    GateResult,
    PublishResult,
    StepRecord,
    TunedModelResult,
)
from fmnist_tasks.text import make_printable


def show_rows(content: dict[str, Any] | list[dict[str, Any]], as_json: bool, if_empty: str = "") -> None:
    """Print rows, or the fields of one object, as a table or as JSON; print `if_empty` for an empty table."""
    if as_json:
        print_json(content)
    elif isinstance(content, dict):
        _print_table(["", ""], [[name, _format_cell(value)] for name, value in content.items()], headless=True)
    elif content:
        _print_table(list(content[0]), [[_format_cell(value) for value in row.values()] for row in content])
    else:
        print(if_empty)


def has_succeeded(records: dict[str, StepRecord]) -> bool:
    """Whether a run promoted a champion, or ended because nothing changed."""
    promoted = "promote" in records and records["promote"].status == "done"
    return promoted or any(record.found_no_change for record in records.values())


def show_steps(records: dict[str, StepRecord]) -> None:
    """Print the steps of a run."""
    rows = [
        [step, record.status, f"{record.seconds:.1f}", _format_cell(record.outcome)] for step, record in records.items()
    ]
    _print_table(["step", "status", "seconds", "outcome"], rows)


def show_metrics(store: Store, run_id: str, run: RecordedRun) -> None:
    """Print accuracies, verdicts, and the location of model and report of a run."""
    report, lines = make_run_key(run_id, "report.html"), []
    for step, result in run.results.items():
        match result:
            case BaseModelResult():
                lines.append(["validation accuracy, base model", f"{result.validation_accuracy:.2%}"])
            case TunedModelResult():
                lines.append(["validation accuracy, tuned model", f"{result.validation_accuracy:.2%}"])
            case EvaluationResult():
                lines.append(["test accuracy, base model", f"{result.test.accuracy:.2%}"])
            case CandidateEvaluationResult():
                lines.append(["test accuracy, candidate", f"{result.test.accuracy:.2%}"])
            case GateResult():
                lines.append([step.replace("_", " "), result.conclusion])
            case PublishResult():
                lines.append(["model", result.location])
    if ignored := sorted({key for record in run.records.values() for key in record.ignored}):
        lines.append(["ignored unknown parameters", ", ".join(ignored)])
    lines.append(["report", store.location(report) if store.stat(report) else "written when the run ends"])
    lines.append(["seconds in steps", f"{sum(record.seconds for record in run.records.values()):.0f}"])
    _print_table(["", ""], lines, headless=True)


def _format_cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else make_printable(str(value))


def _print_table(columns: list[str], rows: list[list[str]], headless: bool = False) -> None:
    table = Table(show_header=not headless, box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), overflow="fold", no_wrap=headless and index == 0)
    for row in rows:
        table.add_row(*map(Text, row))  # rich would interpret markup and emoji codes in a string, such as a file name
    Console(width=None if sys.stdout.isatty() else 160).print(table, highlight=False)


def print_json(content: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=2, allow_nan=False))
