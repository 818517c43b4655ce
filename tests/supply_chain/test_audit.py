"""`make audit-deps`: what passes, what fails, and that what it reads is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fmnist_tasks.settings import PROJECT
from supply_chain.advisories import Database
from supply_chain.audit import Acceptance, Component, Report, audit, read_acceptances, read_components
from supply_chain.images import find_references, list_files
from supply_chain.lock import LOCK, Package, read_lock
from tests.support.advisories import describe, write_database

TODAY = date(2026, 11, 30)
VULNERABLE = [Package("shop", "1.3", frozenset({"00"}))]
HASH = f"--hash=sha256:{'0' * 64}"
NEW = datetime(2026, 11, 29, tzinfo=UTC)


def accept(*ids: str, until: date = TODAY, package: str = "shop") -> Acceptance:
    return Acceptance(package=package, ids=frozenset(ids), until=until, reason="the door is locked")


def use(until: date | None) -> Component:
    return Component(name="Till", version="7", use="money", until=until, source="https://till.example")


def judge(
    packages: Sequence[Package] = (),
    components: Sequence[Component] = (),
    acceptances: Sequence[Acceptance] = (),
    newest: datetime = NEW,
) -> Report:
    database = Database(newest, 1, {"shop": [describe(aliases=["CVE-2026-1"])]})
    return audit(packages, database, components, acceptances, TODAY)


def test_a_vulnerable_package_fails_and_is_described() -> None:
    report = judge(VULNERABLE)
    assert not report.passed
    assert report.lines == ["FAILED    shop 1.3: CVE-2026-1, PYSEC-2026-1; fixed in 1.4: opens the door"]
    assert judge([Package("shop", "1.4", frozenset())]) == Report([], passed=True)


@pytest.mark.parametrize("name", ["CVE-2026-1", "PYSEC-2026-1"])
def test_what_a_person_accepted_passes_and_is_listed(name: str) -> None:
    report = judge(VULNERABLE, acceptances=[accept(name)])
    assert report.passed
    finding, decision = report.lines[0].split("; accepted until ")
    assert finding == "accepted  shop 1.3: CVE-2026-1, PYSEC-2026-1; fixed in 1.4: opens the door"
    assert decision == "2026-11-30: the door is locked"


def test_an_acceptance_is_for_one_finding_of_one_package() -> None:
    assert not judge(VULNERABLE, acceptances=[accept("CVE-2026-2")]).passed
    assert not judge(VULNERABLE, acceptances=[accept("CVE-2026-1", package="other")]).passed


def test_an_acceptance_that_has_expired_fails_even_without_its_finding() -> None:
    expired = accept("CVE-2026-1", until=date(2026, 11, 29))
    report = judge(VULNERABLE, acceptances=[expired])
    assert not report.passed
    assert [line.split()[0] for line in report.lines] == ["FAILED", "EXPIRED"]
    assert not judge(acceptances=[expired]).passed


def test_what_no_database_has_is_listed() -> None:
    report = judge(acceptances=[accept("CVE-2026-9")])
    assert report.passed
    assert report.lines == ["known     shop: CVE-2026-9; accepted until 2026-11-30: the door is locked"]


@pytest.mark.parametrize(
    ("until", "passed", "words"),
    [
        (date(2026, 11, 29), False, ["FAILED"]),
        (date(2026, 11, 30), True, ["soon"]),
        (date(2027, 2, 28), True, ["soon"]),
        (date(2027, 3, 1), True, []),
        (None, True, []),
    ],
)
def test_the_end_of_support_is_announced_and_then_fails(until: date | None, passed: bool, words: list[str]) -> None:
    report = judge(components=[use(until)])
    assert (report.passed, [line.split()[0] for line in report.lines]) == (passed, words)
    assert judge(components=[use(until)], acceptances=[accept("end of support", package="Till 7")]).passed


def test_a_database_that_is_too_old_tells_nothing() -> None:
    assert judge(newest=datetime(2026, 10, 31, tzinfo=UTC)).passed
    report = judge(newest=datetime(2026, 10, 30, tzinfo=UTC))
    assert not report.passed
    assert "older than 30 days" in report.lines[-1]


def run_audit(database: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supply_chain.audit", "--database", database]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def test_the_command_says_which_database_it_used_and_fails_for_a_vulnerable_lock(tmp_path: Path) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    package = read_lock()[0]
    entry = describe(package.name, modified=now)
    entry["affected"][0]["versions"] = [package.version]
    ended = run_audit(write_database(tmp_path / "all.zip", entry))
    assert ended.returncode == 1
    assert f"database  OSV's export for PyPI, stored: 1 advisories, newest of {now[:10]} " in ended.stdout
    assert f"FAILED    {package.name} {package.version}: PYSEC-2026-1; fixed in 1.4: opens the door\n" in ended.stdout
    assert "known     h5py: " in ended.stdout

    ended = run_audit(tmp_path / "none.zip")
    assert ended.returncode == 2
    assert "no database of advisories: " in ended.stderr


def test_every_package_of_the_lock_is_checked_with_its_hashes() -> None:
    lock = LOCK.read_text()
    assert len(read_lock()) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE)) > 200
    assert sum(len(package.hashes) for package in read_lock()) == lock.count("--hash=sha256:")


@pytest.mark.parametrize("line", [f"shop>=1.3 {HASH}", "shop==1.3", "shop==1.3 --hash=md5:00", f"shop==1.3 {HASH}0"])
def test_a_line_that_locks_nothing_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"lock\.txt: .*make lock"):
        read_lock(tmp_path / "lock.txt")


def test_an_entry_that_lacks_its_reason_or_date_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accepted.toml"
    path.write_text('[[accepted]]\npackage = "shop"\nids = ["CVE-2026-1"]\nuntil = 2027-01-01\n')
    with pytest.raises(ValueError, match="reason"):
        read_acceptances(path)


def test_what_is_accepted_is_in_use() -> None:
    used = {package.name for package in read_lock()} | set(map(str, read_components()))
    assert {acceptance.package for acceptance in read_acceptances()} <= used


def test_every_base_image_and_its_version_has_an_end_of_support() -> None:
    known = [component.image for component in read_components() if component.image]
    used = [reference for path in list_files() for reference in find_references(path) if "/minio:" not in reference]
    assert len(used) >= 5
    assert [one for one in used if not any(re.match(rf"{re.escape(image)}(?!\d)", one) for image in known)] == []


def test_the_versions_with_an_end_of_support_are_those_in_the_lock() -> None:
    components = [component for component in read_components() if component.package]
    locked = {package.name: package.version for package in read_lock()}
    assert components
    assert [one for one in components if not locked[one.package].startswith(f"{one.version}.")] == []
    pythons = {component.version for component in read_components() if component.name == "Python"}
    declared = re.search(r'^requires-python = "(.*)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared
    allowed = Requirement(f"python{declared[1]}").specifier
    assert pythons == {version for minor in range(30) if (version := f"3.{minor}") in allowed}


def test_the_documented_ends_of_support_are_those_of_the_audit() -> None:
    document = (PROJECT / "docs" / "supply-chain.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| \[[^]]+\]\((\S+)\) \|$", document, re.MULTILINE)
    expected = []
    for one in read_components():
        end = "; ".join(filter(None, (str(one.until or ""), one.note)))
        expected.append((str(one), one.use, end, one.source))
    assert rows == expected
