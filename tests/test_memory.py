from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks import memory


def test_the_peak_is_measured_since_the_last_reset() -> None:
    np.ones(80 << 20, np.uint8).sum()
    peak = memory.read_peak_memory()
    memory.reset_peak_memory()
    assert 0 < memory.read_peak_memory() <= peak


def test_a_peak_that_cannot_be_reset_is_that_of_the_whole_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no folder" / "clear_refs")
    memory.reset_peak_memory()
    assert memory.read_peak_memory() > 10
