"""How a child process ended, in words."""

from __future__ import annotations

import signal
import sys

_SIGNALS = {
    "SIGABRT": "abort",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic error",
    "SIGILL": "illegal instruction",
    "SIGKILL": "killed, as the system does when memory runs out",
    "SIGSEGV": "segmentation fault",
    "SIGTERM": "ended from outside",
    "SIGTRAP": "trap",
}
# The exit codes that Windows gives (NTSTATUS), under the names of the signals that they stand for.
_WINDOWS = {
    0xC0000005: "SIGSEGV",
    0xC000001D: "SIGILL",
    0xC0000094: "SIGFPE",
    0xC0000096: "SIGILL",
    0xC00000FD: "SIGSEGV",
    0xC0000409: "SIGABRT",
}
#: Signals that the same instructions raise again; a SIGKILL or SIGTERM comes from elsewhere.
REPEATABLE = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP")


def signal_name(returncode: int) -> str:
    """``SIGILL`` and the like for the exit status of a child that a signal ended, else nothing."""
    if sys.platform == "win32":
        return _WINDOWS.get(returncode & 0xFFFFFFFF, "")
    if returncode >= 0:
        return ""
    try:
        return signal.Signals(-returncode).name
    except ValueError:  # a real-time signal
        return f"signal {-returncode}"


def in_words(returncode: int) -> str:
    """``illegal instruction (SIGILL)``, or ``exit status 3`` where no signal ended the child."""
    name = signal_name(returncode)
    if not name:
        return f"exit status {returncode}"
    return f"{_SIGNALS[name]} ({name})" if name in _SIGNALS else name
