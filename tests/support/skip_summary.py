"""A plugin of pytest: the end of a run says once of everything that tests were skipped for how to get it."""

from __future__ import annotations

from typing import Any

from tests.support.requirements import REQUIREMENTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the skipped tests by what this machine lacks."""
    reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
    counts = {requirement: sum(str(requirement) in reason for reason in reasons) for requirement in REQUIREMENTS}
    if any(counts.values()):
        terminalreporter.section("skipped for want of")
        for requirement, count in counts.items():
            if count:
                terminalreporter.write_line(f"{requirement.name} (tests: {count}): {requirement.remedy}")
