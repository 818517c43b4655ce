"""A pytest plugin that lists each missing requirement once, with its remedy, and fails CI if a test was skipped."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.requirements import REQUIREMENTS, is_ci


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI if any test was skipped or expected to fail, for any reason."""
    if is_ci() and exitstatus == pytest.ExitCode.OK and _count_omitted(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the number of skipped tests for each missing requirement."""
    reasons = [str(report.longrepr) for report in terminalreporter.getreports("skipped")]
    counts = {requirement: sum(str(requirement) in reason for reason in reasons) for requirement in REQUIREMENTS}
    if any(counts.values()):
        terminalreporter.section("missing requirements")
        for requirement, count in counts.items():
            if count:
                tests = "1 test" if count == 1 else f"{count} tests"
                terminalreporter.write_line(f"{requirement.name}: {tests} skipped; to fix: {requirement.remedy}")
    if is_ci() and (omitted := _count_omitted(config)):
        terminalreporter.section("omitted in CI")
        terminalreporter.write_line(f"{omitted} tests were skipped or expected to fail, which CI does not allow")


def _count_omitted(config: pytest.Config) -> int:
    """The number of tests that were skipped or expected to fail; 0 in a test worker, which does not collect reports."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return sum(len(reporter.stats.get(outcome, [])) for outcome in ("skipped", "xfailed")) if reporter else 0
