"""The libraries of the Releases page are those of the npm lock file."""

from __future__ import annotations

import json

from fmnist_tasks.settings import INCLUDE

VENDOR = INCLUDE / "page" / "vendor"


def test_uplot_has_the_locked_version() -> None:
    """After an update of the lock file, `make vendor` copies the new version."""
    lock = json.loads((VENDOR / "package-lock.json").read_text())
    version = lock["packages"]["node_modules/uplot"]["version"]
    assert f"(v{version})" in (VENDOR / "uPlot.iife.min.js").read_text().partition("\n")[0]
