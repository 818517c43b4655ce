"""A pytest plugin that prints a table of the fault-injection tests at the end of a test run."""

from __future__ import annotations

from typing import Any

import pytest

_rows: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect outcome, duration and summary of a fault-injection test."""
    if report.when == "call" and "/faults/" in report.nodeid:
        name, summary = report.nodeid.rpartition("::")[2], dict(report.user_properties).get("summary", "")
        _rows.append(f"{report.outcome:<7} {report.duration:4.0f} s  {name}: {summary}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if _rows:
        terminalreporter.section("fault injection")
        for row in _rows:
            terminalreporter.write_line(row)
