from __future__ import annotations

import sys

import pytest

from fmnist_tasks.memory import read_peak_memory, reset_peak_memory

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that since the process began")
def test_the_peak_is_that_since_the_last_reset() -> None:
    for _ in range(2):
        reset_peak_memory()
        before = read_peak_memory()
        held = bytearray(300 * MIB)
        held[:: 4 << 10] = bytes(len(held[:: 4 << 10]))
        assert 290 <= read_peak_memory() - before <= 400
        del held
