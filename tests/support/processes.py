"""Other processes, as a test sees them."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether there is no such process before the time is over, not even a zombie."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def peak_memory() -> int:
    """The most memory that this process ever had resident, in KiB.

    Where Linux tells, not ru_maxrss: it begins at what the parent had when it started us."""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.split("VmHWM:")[1].split()[0])
