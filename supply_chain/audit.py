"""`make audit-deps`: the lock against known vulnerabilities, and the versions in use against their ends of support.

Exit code 1: something was found that accepted.toml does not accept, an acceptance has expired, or the database is too
old to tell; 2: there is no database. A person accepts a finding there, with a reason, for a limited time.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel

from fmnist_tasks.settings import PROJECT, Settings
from supply_chain.advisories import URL, Database, Finding, read_database, refresh
from supply_chain.lock import LOCK, Package, read_lock

ACCEPTED = PROJECT / "supply_chain" / "accepted.toml"
SUPPORT = PROJECT / "supply_chain" / "support.toml"
NOTICE = timedelta(days=90)  # how long before it happens an end of support is announced
MAX_AGE = timedelta(days=30)  # of a database that is believed
END_OF_SUPPORT = "end of support"


class Acceptance(BaseModel, frozen=True, extra="forbid"):
    """A person's decision to live with something for a while."""

    package: str
    ids: frozenset[str]
    until: date  # the last day on which it holds
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether the decision is about this finding."""
        return self.package == finding.package and not self.ids.isdisjoint(finding.ids)


class Component(BaseModel, frozen=True, extra="forbid"):
    """A version of something that others maintain."""

    name: str
    version: str
    use: str
    source: str  # address of the page that says when its support ends
    until: date | None = None  # the last day of its support; none: no date is published
    note: str = ""
    image: str = ""  # the beginning of the image references that this is about
    package: str = ""  # its name in the lock file

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Report:
    """What to print, and whether all is well."""

    lines: Sequence[str]
    passed: bool


def audit(
    packages: Sequence[Package],
    database: Database,
    components: Sequence[Component],
    acceptances: Sequence[Acceptance],
    today: date,
) -> Report:
    """Compare what is used with what is known, and that with what was accepted.

    What was accepted and is in no database of PyPI, such as a library inside a wheel, is listed all the same.
    """
    ended = [
        Finding(str(one), "", (END_OF_SUPPORT,), (), f"since {one.until}; {one.source}")
        for one in components
        if one.until and one.until < today
    ]
    findings = [*database.find(packages), *ended]
    valid = [one for one in acceptances if one.until >= today]
    decisions = [(finding, next((one for one in valid if one.covers(finding)), None)) for finding in findings]
    expired = [one for one in acceptances if one not in valid]
    elsewhere = [one for one in valid if not any(decision is one for _, decision in decisions)]
    is_old = today - database.date.date() > MAX_AGE
    lines = [
        *(f"FAILED    {_describe(finding)}" for finding, decision in decisions if not decision),
        *(f"EXPIRED   {one.package}: {', '.join(sorted(one.ids))}; {_describe_decision(one)}" for one in expired),
        *(f"accepted  {_describe(finding)}; {_describe_decision(one)}" for finding, one in decisions if one),
        *(f"known     {one.package}: {', '.join(sorted(one.ids))}; {_describe_decision(one)}" for one in elsewhere),
        *(
            f"soon      {one}: support ends on {one.until}; {one.source}"
            for one in components
            if _ends_soon(one, today)
        ),
    ]
    if is_old:
        lines.append(
            f"FAILED    the database is older than {MAX_AGE.days} days: connect this machine, or bring {URL} to it"
        )
    return Report(lines, not (expired or is_old or any(not decision for _, decision in decisions)))


def _ends_soon(component: Component, today: date) -> bool:
    return component.until is not None and today <= component.until <= today + NOTICE


def _describe(finding: Finding) -> str:
    fixed = f"; fixed in {', '.join(finding.fixed)}" if finding.fixed else ""
    return f"{finding.package} {finding.version}".strip() + f": {', '.join(finding.ids)}{fixed}: {finding.summary}"


def _describe_decision(acceptance: Acceptance) -> str:
    return f"accepted until {acceptance.until}: {acceptance.reason}"


def read_acceptances(path: Path = ACCEPTED) -> list[Acceptance]:
    """The accepted findings. Raises ValueError for an entry that lacks something or has something else."""
    return [Acceptance.model_validate(entry) for entry in tomllib.loads(path.read_text())["accepted"]]


def read_components(path: Path = SUPPORT) -> list[Component]:
    """The versions in use. Raises ValueError as for acceptances."""
    return [Component.model_validate(entry) for entry in tomllib.loads(path.read_text())["component"]]


def main() -> int:
    """Print the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, help="a file fetched before, instead of the newest and of the cache")
    chosen: Path | None = parser.parse_args().database
    stored = chosen or Settings.from_environment().cache / "advisories.zip"
    problem = "" if chosen else refresh(stored)
    if problem:
        print(f"cannot fetch the newest database, {problem}", file=sys.stderr)
    packages = read_lock()
    try:
        database = read_database(stored, {package.name for package in packages})
    except (OSError, ValueError) as error:
        print(f"no database of advisories: {error}", file=sys.stderr)
        return 2
    report = audit(packages, database, read_components(), read_acceptances(), datetime.now(UTC).date())
    how = "stored" if chosen or problem else "fetched"
    newest = f"newest of {database.date:%Y-%m-%d %H:%M} UTC"
    print(f"database  OSV's export for PyPI, {how}: {database.size} advisories, {newest}")
    print(f"lock      {LOCK.name}: {len(packages)} packages")
    print(*report.lines, sep="\n")
    print("passed" if report.passed else "failed: upgrade, or accept with a reason in supply_chain/accepted.toml")
    return not report.passed


if __name__ == "__main__":
    sys.exit(main())
