"""Advisories in the format of OSV, and databases in the format of osv-scanner's cache."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

MODIFIED = "2026-11-20T10:00:00Z"


def build_advisory(name: str = "shop", ecosystem: str = "PyPI", fixed: str = "1.4.0", **changes: Any) -> Entry:
    """An advisory that affects versions from 1.0.0 up to the fixed version, exclusive."""
    kind = "SEMVER" if ecosystem == "Go" else "ECOSYSTEM"
    ranges = [{"type": kind, "events": [{"introduced": "1.0.0"}, {"fixed": fixed}]}]
    affected = [{"package": {"name": name, "ecosystem": ecosystem}, "ranges": ranges}]
    return {"id": "TEST-2026-1", "modified": MODIFIED, "summary": "opens the door", "affected": affected} | changes


def write_database(cache: Path, *entries: Entry, ecosystem: str = "PyPI") -> Path:
    """Write a database like OSV's exports where osv-scanner looks for it, and return its path."""
    path = cache / "osv-scanner" / ecosystem / "all.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(f"{entry['id']}.json", json.dumps(entry))
    return path
