from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks import memory


def test_the_peak_is_that_since_the_last_reset() -> None:
    np.ones(80 << 20, np.uint8).sum()
    high = memory.read_peak_memory()
    memory.reset_peak_memory()
    assert 0 < memory.read_peak_memory() <= high


def test_where_the_system_tells_no_peak_that_can_be_reset_it_is_the_one_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no folder" / "clear_refs")
    memory.reset_peak_memory()
    assert memory.read_peak_memory() > 10
