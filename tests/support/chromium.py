"""The Chromium of this machine, for browser tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.support.requirements import find_chromium

_QUIET_OPTIONS = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Run Chromium without a window. Call `require(CHROMIUM)` before."""
    sandbox = os.geteuid() != 0  # Chromium has no sandbox as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=sandbox, args=_QUIET_OPTIONS
        )
        yield browser
        browser.close()
