"""Other processes, as a test sees them."""

from __future__ import annotations

import os
import time


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
