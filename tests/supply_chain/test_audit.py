"""`make audit-deps`: ends of support, dates of databases, and completeness of the lists maintained by hand."""

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
from tests.support.advisories import build_advisory, write_database
from tests.support.lock import read_lock

HASH = f"--hash=sha256:{'0' * 64}"
TODAY = date(2026, 11, 30)


@pytest.mark.parametrize(
    ("until", "accepted_until", "statuses"),
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
def test_an_end_of_support_warns_in_advance_then_fails_unless_accepted(
    until: date | None, accepted_until: date | None, statuses: list[str]
) -> None:
    component = Component(
        name="Till", version="7", use="", source="https://till.example", until=until, accepted_until=accepted_until
    )
    assert [line.split()[0] for line in describe_support([component], TODAY)] == statuses


def test_a_database_is_dated_by_its_newest_advisory(tmp_path: Path) -> None:
    path = write_database(
        tmp_path, build_advisory(), build_advisory(id="TEST-2026-2", modified="2026-11-21T00:00:00.25Z")
    )
    assert f"{read_date(path):%Y-%m-%d}" == "2026-11-21"


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_not_a_database_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write_database(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"all\.zip .*delete it"):
        read_date(path)


def test_every_acceptance_has_a_reason_and_a_last_day() -> None:
    for entry in tomllib.loads(CONFIG.read_text())["IgnoredVulns"]:
        assert set(entry) == {"id", "ignoreUntil", "reason"}
        assert isinstance(entry["ignoreUntil"], date)
        assert entry["reason"]
    for component in read_components():
        assert bool(component.accepted_until) is bool(component.reason)


@pytest.mark.parametrize("line", [f"shop>=1.3 {HASH}", "shop==1.3", "shop==1.3 --hash=md5:00", f"shop==1.3 {HASH}0"])
def test_a_line_without_an_exact_version_and_hashes_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"lock\.txt: .*make lock"):
        read_lock(tmp_path / "lock.txt")


def test_every_line_of_the_lock_file_has_hashes() -> None:
    lock = LOCK.read_text()
    assert len(read_lock()) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE)) > 200
    assert sum(len(package.hashes) for package in read_lock()) == lock.count("--hash=sha256:")


def test_every_base_image_and_its_version_has_an_end_of_support() -> None:
    images = [component.image for component in read_components() if component.image]
    references = [
        reference for path in list_files() for reference in find_references(path) if "/minio:" not in reference
    ]
    assert len(references) >= 5
    patterns = [rf"{re.escape(image)}(?!\d)" for image in images]
    assert [
        reference for reference in references if not any(re.match(pattern, reference) for pattern in patterns)
    ] == []


def test_the_versions_with_an_end_of_support_are_those_in_use() -> None:
    components = [component for component in read_components() if component.package]
    locked = {package.name: package.version for package in read_lock()}
    assert components
    outdated = [
        component for component in components if not locked[component.package].startswith(f"{component.version}.")
    ]
    assert outdated == []
    pythons = {component.version for component in read_components() if component.name == "Python"}
    match = re.search(r'^requires-python = "(.*)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match
    supported = Requirement(f"python{match[1]}").specifier
    assert pythons == {version for minor in range(30) if (version := f"3.{minor}") in supported}


def test_the_documented_ends_of_support_are_those_of_the_audit() -> None:
    document = (PROJECT / "docs" / "supply-chain.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| \[[^]]+\]\((\S+)\) \|$", document, re.MULTILINE)
    expected = []
    for component in read_components():
        end = "; ".join(filter(None, (str(component.until or ""), component.note)))
        expected.append((str(component), component.use, end, component.source))
    assert rows == expected
