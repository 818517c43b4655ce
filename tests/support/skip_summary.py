"""A pytest plugin: the end of a run lists once each requirement for which tests were skipped, and how to get it."""

from __future__ import annotations

from typing import Any

from tests.support.requirements import REQUIREMENTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the skipped tests by missing requirement."""
    reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
    counts = {requirement: sum(str(requirement) in reason for reason in reasons) for requirement in REQUIREMENTS}
    if any(counts.values()):
        terminalreporter.section("missing requirements")
        for requirement, count in counts.items():
            if count:
                tests = "1 test" if count == 1 else f"{count} tests"
                terminalreporter.write_line(f"{requirement.name}: {tests} skipped; to fix: {requirement.remedy}")
