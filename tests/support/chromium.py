"""A real Chromium for the tests: the machine's own, or the one of Debian's packages, which is installed then."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.support.installing import installing

_QUIET = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")


class NoBrowserError(Exception):
    """This machine has no way to a browser."""


def executable() -> str:
    """The path of the browser; raises :class:`NoBrowserError`."""
    if not (found := _found()) and os.geteuid() == 0 and shutil.which("apt-get"):
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "--quiet", *arguments], check=True, stdin=subprocess.DEVNULL)
        found = _found()
    if not found:
        raise NoBrowserError("no Chromium; install one (Debian, as root: apt-get install chromium)")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser, without a window, until the end."""
    sandbox = os.geteuid() != 0  # Chromium refuses to start one as root
    with installing():
        path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=sandbox, args=_QUIET)
        yield browser
        browser.close()


def _found() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
