"""What tests of killed processes need of the machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.processes import start_process


def test_a_temporary_folder_whose_path_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    with pytest.raises(
        RuntimeError, match=r"longlong.* is too long for a socket in it: set TMPDIR to one of at most 75"
    ):
        start_process(tmp_path / "said.txt", os.getpid)
