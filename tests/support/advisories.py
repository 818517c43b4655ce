"""Advisories as OSV describes them, and databases of them as osv-scanner keeps them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

MODIFIED = "2026-11-20T10:00:00Z"


def describe(name: str = "shop", ecosystem: str = "PyPI", fixed: str = "1.4.0", **changes: Any) -> Entry:
    """An advisory: versions from 1.0 on are affected until the fixed one."""
    kind = "SEMVER" if ecosystem == "Go" else "ECOSYSTEM"
    ranges = [{"type": kind, "events": [{"introduced": "1.0.0"}, {"fixed": fixed}]}]
    affected = [{"package": {"name": name, "ecosystem": ecosystem}, "ranges": ranges}]
    return {"id": "TEST-2026-1", "modified": MODIFIED, "summary": "opens the door", "affected": affected} | changes


def write_database(cache: Path, *entries: Entry, ecosystem: str = "PyPI") -> Path:
    """A database like those that OSV exports, where osv-scanner looks for it."""
    path = cache / "osv-scanner" / ecosystem / "all.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(f"{entry['id']}.json", json.dumps(entry))
    return path
