"""The memory that this machine can give to a model: what the system and other programs use is left
alone."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_SHARE = 0.75  # of the physical memory, where the system does not say what is free


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that can be had without swapping, within the limits of the containers that this process
    runs in. None where the system does not say."""
    limits = [
        room for room in (_available(proc), *_container_rooms(proc, cgroups)) if room is not None
    ]
    return max(min(limits), 0) if limits else None


def _available(proc: Path) -> int | None:
    try:
        lines = dict(
            line.split(":", 1)
            for line in (proc / "meminfo").read_text(encoding="ascii").splitlines()
        )
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _windows_memory() if sys.platform == "win32" else _physical_share()


def _windows_memory() -> int | None:
    """What GlobalMemoryStatusEx calls available: physical memory without swapping."""
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - only there
    status = _MemoryStatus(ctypes.sizeof(_MemoryStatus))
    return int(status.available) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h; all sizes in bytes."""

    _fields_: ClassVar = [
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    ]


def _physical_share() -> int | None:
    sysconf: Any = getattr(os, "sysconf", None)  # not on Windows
    try:
        return int(sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES") * _SHARE)
    except (TypeError, ValueError, OSError):
        return None


def _container_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left of each memory limit above this process, of both versions of control groups."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _rooms(cgroups, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _rooms(
                cgroups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes"
            )


def _rooms(root: Path, path: str, limit_name: str, usage_name: str) -> Iterator[int]:
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if group == root.parent:
            return
        limit, usage = _number(group / limit_name), _number(group / usage_name)
        if limit is not None and usage is not None:
            yield limit - usage + _reclaimable(group / "memory.stat")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None


def _reclaimable(file: Path) -> int:
    """Bytes of cached files, which the kernel gives back when memory is needed."""
    try:
        lines = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
        return int(lines.get("total_inactive_file") or lines["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0
