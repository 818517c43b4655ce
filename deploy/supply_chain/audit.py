"""`make audit-deps`: known vulnerabilities of the lock and of the MinIO that was built here, and ends of support.

osv-scanner finds the vulnerabilities, in databases that it fetches or, without a network, in those of an earlier run.
Exit code 1: something was found that neither osv-scanner.toml nor support.toml accepts, or a database is too old to
tell; 2: a database or the scanner is missing.
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

# 2.5.0 ignores where the databases are, and may find nothing without one: https://github.com/google/osv-scanner/issues/2983
SCANNER = "github.com/google/osv-scanner/v2/cmd/osv-scanner@v2.4.0"
CONFIG = PROJECT / "deploy" / "supply_chain" / "osv-scanner.toml"
SUPPORT = PROJECT / "deploy" / "supply_chain" / "support.toml"
NOTICE = timedelta(days=90)  # how long before it happens an end of support is announced
MAX_AGE = timedelta(days=30)  # of a database that is believed


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
    accepted_until: date | None = None  # the last day of the decision to use it after its end
    reason: str = ""  # of that decision

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def build_scanner(cache: Path) -> Path:
    """Path of osv-scanner, which Go builds once. Raises CalledProcessError, or OSError without Go."""
    program = cache / f"osv-scanner-{SCANNER.rpartition('@')[2]}" / "osv-scanner"
    if not program.exists():
        print(f"building {SCANNER}, once; this takes a few minutes", file=sys.stderr)
        subprocess.run(["go", "install", SCANNER], env=os.environ | {"GOBIN": str(program.parent)}, check=True)
    return program


def list_databases(cache: Path, programs: Sequence[Path]) -> list[Path]:
    """Where osv-scanner keeps the databases: of Python packages, and of Go modules if there are programs to check."""
    return [cache / "osv-scanner" / name / "all.zip" for name in ("PyPI", *(["Go"] if programs else []))]


def scan(
    cache: Path, lock: Path, programs: Sequence[Path], *options: str, config: Path = CONFIG
) -> subprocess.CompletedProcess[str]:
    """Let osv-scanner find the known vulnerabilities of locked packages and of the modules of Go programs.

    Its exit code is 0 if there are none but accepted ones, 1 if there are others, more if it could not tell.
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
    """When the newest advisory was changed. Raises OSError or ValueError if this is no database."""
    try:
        with zipfile.ZipFile(database) as archive:
            return max(
                datetime.fromisoformat(json.loads(archive.read(name))["modified"]) for name in archive.namelist()
            )
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{database} is not an export of OSV: {error!r}; delete it") from error


def describe_support(components: Sequence[Component], today: date) -> list[str]:
    """A line for each component whose support has ended or soon will; those that nobody accepted begin with FAILED."""
    lines = []
    for one in components:
        if one.until is None or one.until > today + NOTICE:
            continue
        if one.until >= today:
            lines.append(f"soon      {one}: support ends on {one.until}; {one.source}")
        elif one.accepted_until and one.accepted_until >= today:
            lines.append(f"accepted  {one}: no support since {one.until}; until {one.accepted_until}: {one.reason}")
        else:
            lines.append(f"FAILED    {one}: no support since {one.until}; {one.source}")
    return lines


def read_components(path: Path = SUPPORT) -> list[Component]:
    """The versions in use. Raises ValueError for an entry that lacks something or has something else."""
    return [Component.model_validate(entry) for entry in tomllib.loads(path.read_text())["component"]]


def audit(cache: Path, components: Sequence[Component], today: date, lock: Path = LOCK, config: Path = CONFIG) -> int:
    """Print everything that was found; the exit code."""
    programs = list_go_programs(cache)
    try:
        ended = scan(cache, lock, programs, "--download-offline-databases", config=config)
        if ended.returncode > 1:
            print(*(line for line in ended.stdout.splitlines() if line.startswith("could not load db")), sep="\n")
            print("trying the databases of an earlier run")
            ended = scan(cache, lock, programs, config=config)
        print(ended.stdout)
        if ended.returncode > 1:
            raise ValueError(f"osv-scanner ended with exit code {ended.returncode}")
        dates = {path.parent.name: read_date(path) for path in list_databases(cache, programs)}
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"vulnerabilities were not checked: {error}", file=sys.stderr)
        return 2
    lines = describe_support(components, today)
    if not programs:
        lines.append("skipped   MinIO, Versity: not built on this machine; include/minio find_server builds MinIO")
    for name, newest in dates.items():
        described = f"{name}: newest advisory of {newest:%Y-%m-%d %H:%M} UTC"
        is_old = today - newest.date() > MAX_AGE
        lines.append(f"FAILED    {described}, too old to tell" if is_old else f"database  {described}")
    print(*lines, sep="\n")
    passed = not ended.returncode and not any(line.startswith("FAILED") for line in lines)
    print("passed" if passed else "failed: docs/supply-chain.md says what to do")
    return not passed


def main() -> int:
    """Check this project, today; the exit code."""
    return audit(Settings.from_environment().cache, read_components(), datetime.now(UTC).date())


if __name__ == "__main__":
    sys.exit(main())
