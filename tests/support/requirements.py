"""What tests need and a machine may lack: without it they are skipped, and say how to get it.

With CI=true a test that lacks something fails instead.
"""

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

from fmnist_tasks.settings import INCLUDE, PROJECT
from fmnist_tasks.turns import one_at_a_time
from tests.support.hosts import can_make_hosts

_BY_MAKE = "sudo make test-deps"
_BY_GO = "install Go 1.24 or newer, https://go.dev/dl"


@dataclass(frozen=True)
class Requirement:
    """Something that a machine may lack."""

    name: str
    remedy: str  # what gets it: a command where there is one
    is_met: Callable[[], bool]

    def __str__(self) -> str:
        return f"no {self.name} ({self.remedy})"


def find_program(*names: str) -> str | None:
    """Path of the first of these programs that the machine has."""
    return next(filter(None, map(shutil.which, names)), None)


def find_chromium() -> str | None:
    """Path of the browser."""
    return find_program("chromium", "chromium-browser", "google-chrome")


def _has(*names: str) -> Callable[[], bool]:
    return lambda: all(map(shutil.which, names))


@functools.cache
def _succeeds(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


def _has_postgres() -> bool:
    return bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


@functools.cache
def _has_minio() -> bool:
    """Whether there is a MinIO server; with Go it is built, by one process while the others wait."""
    environment = {**os.environ, "FMNIST_HOME": str(PROJECT / "var")}  # where the built server is kept
    with one_at_a_time(PROJECT / "var" / "cache" / "minio.lock"):
        return subprocess.run([INCLUDE / "minio", "find_server"], env=environment).returncode == 0


def _can_parse_compose_files() -> bool:
    parser = str(PROJECT / "tests" / "cluster" / "compose")
    return _succeeds("docker", "compose", "version") or _succeeds("go", "-C", parser, "mod", "download")


def _can_make_namespaces() -> bool:
    return _succeeds("unshare", "--map-root-user", "--net", "--mount", "mount", "-t", "tmpfs", "none", "/mnt")


def _has_network() -> bool:
    return _succeeds(sys.executable, "-m", "pip", "index", "versions", "--retries", "1", "uv")


POSTGRES = Requirement("Postgres", _BY_MAKE, _has_postgres)
REDIS = Requirement("Redis", _BY_MAKE, _has("redis-server"))
CHROMIUM = Requirement("Chromium", _BY_MAKE, lambda: find_chromium() is not None)
FAKETIME = Requirement("faketime", _BY_MAKE, _has("faketime"))
HOST_PROGRAMS = Requirement("ip, unshare and nsenter", _BY_MAKE, _has("ip", "unshare", "nsenter"))
MINIO = Requirement("MinIO", _BY_GO, _has_minio)
COMPOSE_PARSER = Requirement("Docker Compose or Go to build its parser", _BY_GO, _can_parse_compose_files)
HOSTS = Requirement("root that may make network namespaces", "run the tests as root", can_make_hosts)
NAMESPACES = Requirement("right to make namespaces", "run the tests as root", _can_make_namespaces)
NETWORK = Requirement("network to a package index", "connect the machine, or set PIP_INDEX_URL", _has_network)
APT = Requirement("apt", "run the tests on Debian", _has("apt-get", "dpkg-deb"))

REQUIREMENTS = (
    POSTGRES,
    REDIS,
    CHROMIUM,
    FAKETIME,
    HOST_PROGRAMS,
    MINIO,
    COMPOSE_PARSER,
    HOSTS,
    NAMESPACES,
    NETWORK,
    APT,
)


def find_missing(*needed: Requirement) -> str:
    """What of it this machine lacks and how to get it; empty if it has all."""
    return "; ".join(str(requirement) for requirement in needed if not requirement.is_met())


def require(*needed: Requirement) -> None:
    """Skip the test that asks, or fail it with CI=true, if this machine lacks something of this."""
    __tracebackhide__ = True
    if missing := find_missing(*needed):
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
