"""Advisories as OSV describes them, of packages that do not exist."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

MODIFIED = "2026-11-20T10:00:00Z"


def describe(name: str = "shop", identifier: str = "PYSEC-2026-1", **changes: Any) -> Entry:
    """An advisory: versions from 1.0 on are affected, 1.4 is not."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"fixed": "1.4"}]}]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": identifier, "modified": MODIFIED, "summary": "opens the door", "affected": affected} | changes


def write_database(path: Path, *entries: Entry) -> Path:
    """A database like OSV's export for PyPI."""
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(f"{entry['id']}.json", json.dumps(entry))
    return path
