"""Processes that tests start report a temporary folder that they cannot use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.processes import start_process


def test_a_temporary_folder_with_a_long_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    message = r"longlong.* is too long for a socket in it; set TMPDIR to a path of at most 75 bytes"
    with pytest.raises(RuntimeError, match=message):
        start_process(tmp_path / "output.txt", os.getpid)
