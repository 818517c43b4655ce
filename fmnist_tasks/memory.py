"""How much memory this process holds at most while something runs, although it may have held more before."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # on Linux


def reset_peak_memory() -> None:
    """Let the peak begin anew; where the system cannot do that, it stays the peak since the process began."""
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM to what is held now
    except OSError:
        return


def read_peak_memory() -> int:
    """The most memory that this process has held since the last reset, in MiB."""
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(peak[1]) >> 10
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage >> (20 if sys.platform == "darwin" else 10)
