"""A plugin of pytest: a table of what the fault-injection tests showed, at the end of the run."""

from __future__ import annotations

from typing import Any

import pytest

_rows: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a fault-injection test showed."""
    if report.when == "call" and "/faults/" in report.nodeid:
        name, shown = report.nodeid.rpartition("::")[2], dict(report.user_properties).get("shown", "")
        _rows.append(f"{report.outcome:<7} {report.duration:4.0f} s  {name}: {shown}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if _rows:
        terminalreporter.section("fault injection")
        for row in _rows:
            terminalreporter.write_line(row)
