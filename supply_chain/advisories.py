"""Known vulnerabilities of Python packages, from the database that OSV exports for PyPI.

One zip has an entry for each advisory of GitHub, the Python Packaging Authority and OpenSSF (CC-BY 4.0 and Apache 2.0,
https://google.github.io/osv.dev/data). It is kept, so that a machine without a network can use it too.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import urllib.error
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name, canonicalize_version
from packaging.version import InvalidVersion, Version

from supply_chain.lock import Package

URL = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
_NETWORK_TIMEOUT = 30  # seconds without an answer

Entry = Mapping[str, Any]  # https://ossf.github.io/osv-schema


@dataclass(frozen=True, order=True)
class Finding:
    """Something about a component that a person has to look at."""

    package: str
    version: str
    ids: tuple[str, ...]  # all names of one advisory: PYSEC, GHSA, CVE
    fixed: tuple[str, ...]  # versions that are not affected any more
    summary: str


@dataclass(frozen=True)
class Database:
    """The advisories of some packages."""

    date: datetime  # of the newest change
    size: int  # advisories of all packages
    entries: Mapping[str, Sequence[Entry]]  # by the package's name

    def find(self, packages: Iterable[Package]) -> list[Finding]:
        """Advisories that affect these versions, each once, whatever it is called."""
        return sorted(finding for package in packages for finding in _merge(self._find(package)))

    def _find(self, package: Package) -> Iterable[Finding]:
        for entry in self.entries.get(package.name, ()):
            affected = [one for one in entry["affected"] if _names(one, package.name)]
            if any(is_affected(package.version, one) for one in affected):
                ids = (entry["id"], *entry.get("aliases", ()))
                text = entry.get("summary") or entry.get("details") or ""
                yield Finding(package.name, package.version, ids, _find_fixes(affected), " ".join(text.split())[:100])


def refresh(stored: Path, url: str = URL) -> str:
    """Fetch the database unless the stored one is the newest; why that was not possible, empty if it was."""
    request = urllib.request.Request(url)  # noqa: S310 - ours
    if stored.exists():
        request.add_header("If-Modified-Since", email.utils.formatdate(stored.stat().st_mtime, usegmt=True))
    beside = stored.with_suffix(f".{os.getpid()}")
    stored.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT) as answer:  # noqa: S310
            beside.write_bytes(answer.read())
            changed = email.utils.parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()
        if not zipfile.is_zipfile(beside):
            return f"{url}: answers with something that is no zip"
        os.utime(beside, (changed, changed))
        beside.replace(stored)
    except urllib.error.HTTPError as error:
        return "" if error.code == 304 else f"{url}: {error}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {error}"
    finally:
        beside.unlink(missing_ok=True)
    return ""


def read_database(path: Path, names: Iterable[str]) -> Database:
    """The advisories of these packages. Raises ValueError if the file is not such a database."""
    wanted, found, dates = set(names), defaultdict(list), []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                entry = json.loads(archive.read(name))
                dates.append(datetime.fromisoformat(entry["modified"]))
                if "withdrawn" in entry:
                    continue
                for package in {_find_name(one) for one in entry.get("affected", ())} & wanted:
                    found[package].append(entry)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not OSV's export for PyPI: {error!r}; delete it") from error
    if not dates:
        raise ValueError(f"{path} has no advisories; delete it")
    return Database(max(dates), len(dates), found)


def is_affected(version: str, affected: Entry) -> bool:
    """Whether a version is among those that an advisory lists, or in one of its ranges.

    A range with a version that cannot be compared counts as one that has this version: a person looks.
    """
    if canonicalize_version(version) in map(canonicalize_version, affected.get("versions", ())):
        return True
    ranges = [one["events"] for one in affected.get("ranges", ()) if one["type"] == "ECOSYSTEM"]
    try:
        return any(_is_in_range(Version(version), events) for events in ranges)
    except InvalidVersion:
        return True


def _is_in_range(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """OSV's own rule: of the events in the order of their versions the last that applies decides."""
    inside = False
    pairs = ((kind, value) for event in events for kind, value in event.items())
    for kind, value in sorted(pairs, key=lambda pair: (Version(pair[1]), pair[0] != "introduced")):
        if kind == "introduced" and (value == "0" or version >= Version(value)):
            inside = True
        elif version > Version(value) or (version == Version(value) and kind != "last_affected"):
            inside = False
    return inside


def _find_fixes(affected: Iterable[Entry]) -> tuple[str, ...]:
    ranges = (one for entry in affected for one in entry.get("ranges", ()) if one["type"] == "ECOSYSTEM")
    return tuple(dict.fromkeys(event["fixed"] for one in ranges for event in one["events"] if "fixed" in event))


def _find_name(affected: Entry) -> str:
    package = affected.get("package", {})
    return canonicalize_name(package["name"]) if package.get("ecosystem") == "PyPI" else ""


def _names(affected: Entry, package: str) -> bool:
    return _find_name(affected) == package


def _merge(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of those that share a name: GitHub and PyPA describe the same vulnerability each."""
    merged: list[Finding] = []
    for finding in findings:
        same = [one for one in merged if set(one.ids) & set(finding.ids)]
        merged = [one for one in merged if one not in same]
        ids = sorted({name for one in (*same, finding) for name in one.ids})
        fixed = dict.fromkeys(version for one in (*same, finding) for version in one.fixed)
        merged.append(Finding(finding.package, finding.version, tuple(ids), tuple(fixed), finding.summary))
    return merged
