"""`make audit-deps` with the real osv-scanner: failing and accepted findings, and a scan of the whole lock file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from deploy.supply_chain.audit import audit, build_scanner, scan
from deploy.supply_chain.sbom import LOCK
from fmnist_tasks.settings import PROJECT
from tests.support.advisories import build_advisory, write_database
from tests.support.lock import read_lock
from tests.support.requirements import OSV_SCANNER, require

pytestmark = pytest.mark.exhaustive

TODAY = date(2026, 11, 30)
MODULE = "github.com/BurntSushi/toml"  # osv-scanner contains 1.6.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with osv-scanner and without databases; the network is unreachable."""
    require(OSV_SCANNER)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    folder = build_scanner(PROJECT / "var" / "cache").parent
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / folder.name).symlink_to(folder)
    return tmp_path / "cache"


def write_lock(cache: Path, version: str = "1.3") -> Path:
    path = cache / "requirements.txt"
    path.write_text(f"shop=={version} \\\n    --hash=sha256:{'0' * 64}\n")
    return path


def write_config(cache: Path, name: str, until: str) -> Path:
    path = cache / "accepted.toml"
    path.write_text(f'[[IgnoredVulns]]\nid = "{name}"\nignoreUntil = {until}\nreason = "the door is locked"\n')
    return path


def add_go_program(cache: Path) -> None:
    """Put a Go program, osv-scanner itself, in place of MinIO."""
    (cache / "minio-1").mkdir()
    (cache / "minio-1" / "minio").write_bytes(build_scanner(cache).read_bytes())
    (cache / "minio-1" / "minio").chmod(0o755)


def test_a_vulnerable_lock_fails_and_a_fixed_one_passes(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_database(cache, build_advisory())
    assert audit(cache, [], TODAY, write_lock(cache)) == 1
    printed = capfd.readouterr().out
    assert "TEST-2026-1" in printed
    assert "1.4.0" in printed
    assert "database  PyPI: newest advisory of 2026-11-20 10:00 UTC" in printed
    assert audit(cache, [], TODAY, write_lock(cache, "1.4")) == 0


@pytest.mark.parametrize("name", ["TEST-2026-1", "CVE-2026-1"])
def test_an_accepted_finding_passes_with_its_reason_until_its_last_day(
    name: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_database(cache, build_advisory(aliases=["CVE-2026-1"]))
    lock = write_lock(cache)
    assert audit(cache, [], TODAY, lock, write_config(cache, name, "2999-01-01")) == 0
    assert "the door is locked" in capfd.readouterr().out
    assert audit(cache, [], TODAY, lock, write_config(cache, name, "2020-01-01")) == 1
    assert audit(cache, [], TODAY, lock, write_config(cache, "CVE-2026-2", "2999-01-01")) == 1


@pytest.mark.parametrize(("fixed", "code"), [("9.0.0", 1), ("1.0.1", 0)])
def test_the_modules_of_minio_are_checked(
    fixed: str, code: int, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_database(cache, build_advisory())
    write_database(cache, build_advisory(MODULE, "Go", fixed), ecosystem="Go")
    add_go_program(cache)
    assert audit(cache, [], TODAY, write_lock(cache, "1.4")) == code
    printed = capfd.readouterr().out
    assert (MODULE in printed) is bool(code)
    assert "database  Go: newest advisory of 2026-11-20" in printed


def test_every_package_of_the_lock_is_checked(cache: Path) -> None:
    write_database(cache)
    output = cache / "packages.json"
    assert scan(cache, LOCK, [], "--format=json", "--all-packages", f"--output-file={output}").returncode == 0
    results = json.loads(output.read_text())["results"]
    packages = [result["package"] for source in results for result in source["packages"]]
    locked = {(package.name, package.version) for package in read_lock()}
    assert {(package["name"], package["version"]) for package in packages} == locked


@pytest.mark.parametrize(("today", "code"), [(date(2026, 12, 20), 0), (date(2026, 12, 21), 1)])
def test_a_database_that_is_older_than_30_days_fails(
    today: date, code: int, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_database(cache, build_advisory())
    assert audit(cache, [], today, write_lock(cache, "1.4")) == code
    assert ("FAILED    PyPI: newest advisory of 2026-11-20" in capfd.readouterr().out) is bool(code)


@pytest.mark.parametrize("content", [None, b"", b"<html>"])
def test_the_audit_fails_without_a_database(
    content: bytes | None, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        write_database(cache).write_bytes(content)
    command = [sys.executable, "-m", "deploy.supply_chain.audit"]
    result = subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"FMNIST_HOME": str(cache.parent)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "vulnerabilities were not checked: " in result.stderr


def test_a_go_program_does_not_pass_without_the_database_of_go(cache: Path) -> None:
    write_database(cache, build_advisory())
    add_go_program(cache)
    assert audit(cache, [], TODAY, write_lock(cache, "1.4")) == 2
