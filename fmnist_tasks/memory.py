"""The peak memory of this process since a reset."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # on Linux


def reset_peak_memory() -> None:
    """Reset the peak memory. Without support by the system, the peak stays that since the start of the process."""
    try:
        _CLEAR.write_text("5")  # proc(5): sets VmHWM to the current VmRSS
    except OSError:
        return


def read_peak_memory() -> int:
    """The peak memory of this process since the last reset, in MiB."""
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(peak[1]) >> 10
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage >> (20 if sys.platform == "darwin" else 10)
