"""`make audit-deps`: known vulnerabilities of the lock file and of the servers built here, and end-of-support dates.

osv-scanner finds the vulnerabilities. It downloads their databases; without a network, it uses those of an earlier run.
Exit code 1: neither osv-scanner.toml nor support.toml accepts a finding, or a database is too old. Exit code 2: a
database or the scanner is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel

from deploy.supply_chain.sbom import LOCK, list_go_programs
from fmnist_tasks.settings import PROJECT, Settings

# 2.5.0 ignores the folder of the databases and may report nothing: https://github.com/google/osv-scanner/issues/2983
SCANNER = "github.com/google/osv-scanner/v2/cmd/osv-scanner@v2.4.0"
CONFIG = PROJECT / "deploy" / "supply_chain" / "osv-scanner.toml"
SUPPORT = PROJECT / "deploy" / "supply_chain" / "support.toml"
NOTICE = timedelta(days=90)  # an end of support is announced this long before
MAX_AGE = timedelta(days=30)  # of a vulnerability database


class Component(BaseModel, frozen=True, extra="forbid"):
    """A version of a third-party component."""

    name: str
    version: str
    use: str
    source: str  # URL of the page with the end of its support
    until: date | None = None  # last day of support; None: no date is published
    note: str = ""
    image: str = ""  # prefix of its image references
    package: str = ""  # its name in the lock file
    accepted_until: date | None = None  # last day on which its use without support is accepted
    reason: str = ""  # of the acceptance

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def build_scanner(cache: Path) -> Path:
    """Build osv-scanner with Go if necessary; return its path. Raises CalledProcessError, or OSError without Go."""
    program = cache / f"osv-scanner-{SCANNER.rpartition('@')[2]}" / "osv-scanner"
    if not program.exists():
        print(f"building {SCANNER}, once; this takes a few minutes", file=sys.stderr)
        subprocess.run(["go", "install", SCANNER], env=os.environ | {"GOBIN": str(program.parent)}, check=True)
    return program


def list_databases(cache: Path, programs: Sequence[Path]) -> list[Path]:
    """Paths of osv-scanner's databases: for Python packages, and for Go modules if there are Go programs to check."""
    return [cache / "osv-scanner" / name / "all.zip" for name in ("PyPI", *(["Go"] if programs else []))]


def scan(
    cache: Path, lock: Path, programs: Sequence[Path], *options: str, config: Path = CONFIG
) -> subprocess.CompletedProcess[str]:
    """Run osv-scanner on the locked packages and on the modules of Go programs.

    Its exit code is 0 if all vulnerabilities are accepted, 1 if there are others, and higher if the scan failed.
    """
    command = (build_scanner(cache), "scan", "source", "--offline", "--no-ignore", f"--config={config}")
    readers = ("--experimental-no-default-plugins", "--experimental-plugins=python/requirements,go/binary")
    files = (f"--lockfile={path}" for path in (f"requirements.txt:{lock}", *programs))
    environment = os.environ | {"OSV_SCANNER_LOCAL_DB_CACHE_DIRECTORY": str(cache)}
    return subprocess.run(
        [*command, *readers, *files, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_date(database: Path) -> datetime:
    """The time of the newest change in a database. Raises OSError or ValueError if the file is not a database."""
    try:
        with zipfile.ZipFile(database) as archive:
            return max(
                datetime.fromisoformat(json.loads(archive.read(name))["modified"]) for name in archive.namelist()
            )
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{database} is not an export of OSV: {error!r}; delete it") from error


def describe_support(components: Sequence[Component], today: date) -> list[str]:
    """A line for each component whose support has ended or ends soon; FAILED marks those that are not accepted."""
    lines = []
    for component in components:
        if component.until is None or component.until > today + NOTICE:
            continue
        if component.until >= today:
            lines.append(f"soon      {component}: support ends on {component.until}; {component.source}")
        elif component.accepted_until and component.accepted_until >= today:
            lines.append(
                f"accepted  {component}: support ended on {component.until}; accepted until "
                f"{component.accepted_until}: {component.reason}"
            )
        else:
            lines.append(
                f"FAILED    {component}: support ended on {component.until}; upgrade, or accept it in {SUPPORT.name}; "
                f"{component.source}"
            )
    return lines


def read_components(path: Path = SUPPORT) -> list[Component]:
    """The components in use. Raises ValueError for an entry with missing or unknown fields."""
    return [Component.model_validate(entry) for entry in tomllib.loads(path.read_text())["component"]]


def audit(cache: Path, components: Sequence[Component], today: date, lock: Path = LOCK, config: Path = CONFIG) -> int:
    """Print all findings; return the exit code."""
    programs = list_go_programs(cache)
    try:
        result = scan(cache, lock, programs, "--download-offline-databases", config=config)
        if result.returncode > 1:
            print(*(line for line in result.stdout.splitlines() if line.startswith("could not load db")), sep="\n")
            print("cannot download databases; using those of an earlier run")
            result = scan(cache, lock, programs, config=config)
        print(result.stdout)
        if result.returncode > 1:
            raise ValueError(f"osv-scanner ended with exit code {result.returncode}")
        dates = {path.parent.name: read_date(path) for path in list_databases(cache, programs)}
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"vulnerabilities were not checked: {error}", file=sys.stderr)
        return 2
    lines = describe_support(components, today)
    if not programs:
        lines.append("skipped   MinIO, Versity: not built on this machine; include/minio find_server builds MinIO")
    for name, newest in dates.items():
        description = f"{name}: newest advisory of {newest:%Y-%m-%d %H:%M} UTC"
        is_old = today - newest.date() > MAX_AGE
        remedy = f"older than {MAX_AGE.days} days; connect to a network and run again"
        lines.append(f"FAILED    {description}, {remedy}" if is_old else f"database  {description}")
    print(*lines, sep="\n")
    passed = not result.returncode and not any(line.startswith("FAILED") for line in lines)
    print("passed" if passed else "failed: see docs/supply-chain.md")
    return not passed


def main() -> int:
    """Check this project today; return the exit code."""
    return audit(Settings.from_environment().cache, read_components(), datetime.now(UTC).date())


if __name__ == "__main__":
    sys.exit(main())
