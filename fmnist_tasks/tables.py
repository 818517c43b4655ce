"""Tables for people and JSON for programs, on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmnist_tasks.text import make_printable


def show(content: dict[str, Any] | list[dict[str, Any]], as_json: bool, if_empty: str = "") -> None:
    """Print rows, or the fields of one thing, as a table or as JSON; `if_empty` stands for a table without rows."""
    if as_json:
        print_json(content)
    elif isinstance(content, dict):
        _table(["", ""], [[name, _cell(value)] for name, value in content.items()], headless=True)
    elif content:
        _table(list(content[0]), [[_cell(value) for value in row.values()] for row in content])
    else:
        print(if_empty)


def show_summary(report: str, records: dict[str, Any]) -> None:
    """Print how a run went: its steps, then accuracies, verdicts and where the model and the report lie."""
    results = {step: record["result"] for step, record in records.items() if "result" in record}
    rows = [
        [step, _cell(record["status"]), f"{record['seconds']:.1f}", _cell(record["outcome"])]
        for step, record in records.items()
    ]
    _table(["step", "ended", "seconds", "outcome"], rows)
    figures = [
        ["validation accuracy, base", results.get("choose_base", {}).get("validation_accuracy")],
        ["validation accuracy, tuned", results.get("fine_tune", {}).get("validation_accuracy")],
        ["test accuracy, base", results.get("evaluate_base", {}).get("test", {}).get("accuracy")],
        [
            f"test accuracy, {results.get('fine_tune', {}).get('chosen', 'tuned')} (candidate)",
            results.get("evaluate_tuned", {}).get("test", {}).get("accuracy"),
        ],
    ]
    lines = [[name, "not measured" if value is None else f"{value:.2%}"] for name, value in figures]
    lines += [
        [name.replace("_", " "), results[name]["decision"]]
        for name in ("accuracy_gate", "promotion_gate")
        if name in results
    ]
    if "publish" in results:
        lines.append(["model", results["publish"]["location"]])
    if ignored := sorted({key for record in records.values() for key in record.get("ignored", ())}):
        lines.append(["ignored, no such parameter", ", ".join(ignored)])
    lines.append(["report", report])
    lines.append(["seconds in steps", f"{sum(record['seconds'] for record in records.values()):.0f}"])
    _table(["", ""], lines, headless=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else make_printable(str(value))


def _table(columns: list[str], rows: list[list[str]], headless: bool = False) -> None:
    table = Table(show_header=not headless, box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), overflow="fold", no_wrap=headless and index == 0)
    for row in rows:
        table.add_row(
            *map(Text, row)
        )  # a string may hold what rich takes for markup or an emoji, such as a file's name
    Console(width=None if sys.stdout.isatty() else 160).print(table, highlight=False)


def print_json(content: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=2))
