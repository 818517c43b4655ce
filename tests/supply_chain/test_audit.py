"""`make audit-deps`: ends of support, the dates of databases, and that what people wrote down is complete."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.supply_chain.audit import CONFIG, Component, describe_support, read_components, read_date
from deploy.supply_chain.images import find_references, list_files
from deploy.supply_chain.sbom import LOCK
from fmnist_tasks.settings import PROJECT
from tests.support.advisories import describe, write_database
from tests.support.lock import read_lock

HASH = f"--hash=sha256:{'0' * 64}"
TODAY = date(2026, 11, 30)


@pytest.mark.parametrize(
    ("until", "accepted_until", "words"),
    [
        (date(2026, 11, 29), None, ["FAILED"]),
        (date(2026, 11, 29), date(2026, 11, 29), ["FAILED"]),
        (date(2026, 11, 29), date(2026, 11, 30), ["accepted"]),
        (date(2026, 11, 30), None, ["soon"]),
        (date(2027, 2, 28), None, ["soon"]),
        (date(2027, 3, 1), None, []),
        (None, None, []),
    ],
)
def test_the_end_of_support_is_announced_and_then_fails_unless_accepted(
    until: date | None, accepted_until: date | None, words: list[str]
) -> None:
    till = Component(
        name="Till", version="7", use="", source="https://till.example", until=until, accepted_until=accepted_until
    )
    assert [line.split()[0] for line in describe_support([till], TODAY)] == words


def test_a_database_is_dated_by_its_newest_advisory(tmp_path: Path) -> None:
    path = write_database(tmp_path, describe(), describe(id="TEST-2026-2", modified="2026-11-21T00:00:00.25Z"))
    assert f"{read_date(path):%Y-%m-%d}" == "2026-11-21"


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_database_has_no_date(content: bytes, tmp_path: Path) -> None:
    path = write_database(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"all\.zip .*delete it"):
        read_date(path)


def test_every_acceptance_has_a_reason_and_a_last_day() -> None:
    for entry in tomllib.loads(CONFIG.read_text())["IgnoredVulns"]:
        assert set(entry) == {"id", "ignoreUntil", "reason"}
        assert isinstance(entry["ignoreUntil"], date)
        assert entry["reason"]
    for one in read_components():
        assert bool(one.accepted_until) is bool(one.reason)


@pytest.mark.parametrize("line", [f"shop>=1.3 {HASH}", "shop==1.3", "shop==1.3 --hash=md5:00", f"shop==1.3 {HASH}0"])
def test_a_line_that_locks_nothing_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"lock\.txt: .*make lock"):
        read_lock(tmp_path / "lock.txt")


def test_every_line_of_the_lock_has_hashes() -> None:
    lock = LOCK.read_text()
    assert len(read_lock()) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE)) > 200
    assert sum(len(package.hashes) for package in read_lock()) == lock.count("--hash=sha256:")


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
