"""Read requirements.txt, the lock file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from deploy.supply_chain.sbom import LOCK

_HASHES = r"(?P<hashes>(?:\s+--hash=sha256:[0-9a-f]{64})+)"
_LINE = re.compile(rf"(?P<name>[\w.-]+)==(?P<version>[^\s;,]+)(?:\s*;.*?)?{_HASHES}")


@dataclass(frozen=True, order=True)
class Package:
    """One locked version of a package. The lock file may have several, for different versions of Python."""

    name: str
    version: str
    hashes: frozenset[str]  # SHA-256 in hexadecimal of each file that may be installed


def read_lock(path: Path = LOCK) -> list[Package]:
    """Read all packages of a lock file.

    Raises ValueError if a line is not one version of a package with its hashes.
    """
    lines = (line.strip() for line in path.read_text().replace("\\\n", " ").splitlines())
    return [_parse(line, path.name) for line in lines if line and not line.startswith("#")]


def _parse(line: str, file: str) -> Package:
    match = _LINE.fullmatch(line)
    if not match:
        raise ValueError(f"{file}: a line is not NAME==VERSION with SHA-256 hashes: {line[:80]}; run: make lock")
    hashes = re.findall("sha256:([0-9a-f]+)", match["hashes"])
    return Package(canonicalize_name(match["name"]), match["version"], frozenset(hashes))
