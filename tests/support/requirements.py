"""Programs and permissions that some tests need. A test without them is skipped, or fails in CI, with the remedy."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.supply_chain.audit import build_scanner
from deploy.supply_chain.images import CRANE
from deploy.supply_chain.sbom import CYCLONEDX_GOMOD
from fmnist_tasks.machine_lock import hold_machine_lock
from fmnist_tasks.settings import INCLUDE, PROJECT
from tests.support.hosts import can_make_hosts

_TEST_DEPS_REMEDY = "sudo make test-deps"
_ROOT_REMEDY = "run the tests as root"


@dataclass(frozen=True)
class Requirement:
    """Something that a test needs and a machine may lack."""

    name: str
    remedy_source: str | Callable[[], str]  # the remedy, or a function that finds the one for this machine
    is_met: Callable[[], bool]

    @property
    def remedy(self) -> str:
        """How to meet the requirement on this machine, as a command if possible."""
        return self.remedy_source if isinstance(self.remedy_source, str) else self.remedy_source()

    def __str__(self) -> str:
        return f"missing: {self.name} ({self.remedy})"


def find_program(*names: str) -> str | None:
    """Path of the first of these programs that is installed, or None."""
    return next(filter(None, map(shutil.which, names)), None)


def find_chromium() -> str | None:
    """Path of Chromium or Chrome, or None."""
    return find_program("chromium", "chromium-browser", "google-chrome")


def find_python(version: str) -> str | None:
    """A command for this version of Python, from the PATH or from pyenv, or None.

    Runs each candidate, since a command of pyenv on the PATH may not work.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    commands = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}*/bin/python{version}")))]
    return next((command for command in commands if _succeeds(command, "--version")), None)


def _has_python(version: str) -> bool:
    return find_python(version) is not None


def _make_program_check(*names: str) -> Callable[[], bool]:
    return lambda: all(map(shutil.which, names))


@functools.cache
def _succeeds(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


def _has_postgres() -> bool:
    return bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


@functools.cache
def _has_server(kind: str) -> bool:
    """Whether a server, `minio` or `versity`, exists or can be built. One process builds it while the others wait."""
    environment = {**os.environ, "FMNIST_HOME": str(PROJECT / "var")}  # where built servers are cached
    with hold_machine_lock(PROJECT / "var" / "cache" / f"{kind}.lock"):
        return subprocess.run([INCLUDE / kind, "find_server"], env=environment).returncode == 0


def _can_parse_compose_files() -> bool:
    parser = str(PROJECT / "tests" / "cluster" / "compose")
    return _succeeds("docker", "compose", "version") or _succeeds("go", "-C", parser, "mod", "download")


def _can_run_go_tools() -> bool:
    return _succeeds(*CRANE, "version") and _succeeds(*CYCLONEDX_GOMOD, "version")


@functools.cache
def _has_osv_scanner() -> bool:
    """Whether osv-scanner exists or can be built. One process builds it while the others wait."""
    with hold_machine_lock(PROJECT / "var" / "cache" / "osv-scanner.lock"):
        try:
            return build_scanner(PROJECT / "var" / "cache").exists()
        except (OSError, subprocess.CalledProcessError):
            return False


def _find_go_remedy() -> str:
    """The remedy for a missing program that Go fetches or builds."""
    if shutil.which("go"):
        return "connect the machine, or set GOPROXY"
    return "install Go 1.24 or newer, https://go.dev/dl"


def _can_make_namespaces() -> bool:
    return _succeeds("unshare", "--map-root-user", "--net", "--mount", "mount", "-t", "tmpfs", "none", "/mnt")


def _has_network() -> bool:
    return _succeeds(sys.executable, "-m", "pip", "index", "versions", "--retries", "1", "uv")


POSTGRES = Requirement("Postgres", _TEST_DEPS_REMEDY, _has_postgres)
REDIS = Requirement("Redis", _TEST_DEPS_REMEDY, _make_program_check("redis-server"))
CHROMIUM = Requirement("Chromium", _TEST_DEPS_REMEDY, lambda: find_chromium() is not None)
FAKETIME = Requirement("faketime", _TEST_DEPS_REMEDY, _make_program_check("faketime"))
HOST_PROGRAMS = Requirement(
    "ip, unshare and nsenter", _TEST_DEPS_REMEDY, _make_program_check("ip", "unshare", "nsenter")
)
NGINX = Requirement("nginx", _TEST_DEPS_REMEDY, _make_program_check("nginx"))
OPENSSL = Requirement("openssl", _TEST_DEPS_REMEDY, _make_program_check("openssl"))
MINIO = Requirement("MinIO", _find_go_remedy, functools.partial(_has_server, "minio"))
VERSITY = Requirement("the Versity S3 Gateway", _find_go_remedy, functools.partial(_has_server, "versity"))
COMPOSE_PARSER = Requirement("Docker Compose or Go to build its parser", _find_go_remedy, _can_parse_compose_files)
GO_TOOLS = Requirement("Go, or the modules of its tools", _find_go_remedy, _can_run_go_tools)
OSV_SCANNER = Requirement("osv-scanner", _find_go_remedy, _has_osv_scanner)
HOSTS = Requirement("root with permission to create network namespaces", _ROOT_REMEDY, can_make_hosts)
NAMESPACES = Requirement("permission to create namespaces", _ROOT_REMEDY, _can_make_namespaces)
NETWORK = Requirement("access to a package index", "connect the machine, or set PIP_INDEX_URL", _has_network)
APT = Requirement("apt", "run the tests on Debian", _make_program_check("apt-get", "dpkg-deb"))
PYTHONS = {
    version: Requirement(
        f"Python {version}", f".venv/bin/uv python install {version}", functools.partial(_has_python, version)
    )
    for version in ("3.11", "3.12", "3.13")
}

REQUIREMENTS = (
    POSTGRES,
    REDIS,
    CHROMIUM,
    FAKETIME,
    HOST_PROGRAMS,
    OPENSSL,
    MINIO,
    VERSITY,
    COMPOSE_PARSER,
    GO_TOOLS,
    OSV_SCANNER,
    HOSTS,
    NAMESPACES,
    NETWORK,
    APT,
    *PYTHONS.values(),
)


def is_ci() -> bool:
    """Whether this is CI, where no test may be skipped."""
    return os.environ.get("CI", "") not in {"", "false", "0"}


def find_missing(*needed: Requirement) -> str:
    """The requirements that this machine does not meet, with their remedies; empty if it meets all."""
    return "; ".join(str(requirement) for requirement in needed if not requirement.is_met())


def require(*needed: Requirement) -> None:
    """Skip the calling test, or fail it in CI, if this machine does not meet all of these."""
    __tracebackhide__ = True
    if missing := find_missing(*needed):
        if is_ci():
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
