"""The memory and the cores that this machine can give to a model: what the system and other
programs use is left alone."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
_OBSERVED = 0.1  # seconds that tell how busy the cores are
_STALE = 5.0  # seconds after which an observation's beginning is too old
#: Of the physical memory, where the system does not say what is free.
_SHARE = 0.75


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that can be had without swapping, within the limits of the containers that this process
    runs in. None where the system does not say."""
    limits = [
        room
        for room in (_available(proc), *_container_rooms(proc, cgroups))
        if room is not None
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
    return (
        int(status.available)
        if kernel.GlobalMemoryStatusEx(ctypes.byref(status))
        else None
    )


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
    for groups, version in _groups(proc, cgroups, "memory"):
        names = _MEMORY[version]
        for group in groups:
            limit = _number(group / names[0])
            usage = _number(group / names[1])
            if limit is not None and usage is not None:
                yield limit - usage + _reclaimable(group / "memory.stat")


def core_quota(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float | None:
    """Cores' worth of time that the containers of this process allow it, which may be a fraction;
    None where they set no limit."""
    quotas = []
    for groups, version in _groups(proc, cgroups, "cpu"):
        for group in groups:
            quota = _quota_2(group) if version == 2 else _quota_1(group)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no limit
        return None


def _quota_1(group: Path) -> float | None:
    quota = _number(group / "cpu.cfs_quota_us")
    period = _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 and period > 0 else None


@dataclass(frozen=True)
class CoreUse:
    """How the cores were used until one moment."""

    # seconds of the monotonic clock
    at: float
    # seconds that all cores computed and waited; None where the system does not say
    total: tuple[float, float] | None
    # seconds that this process computed
    own: float


def core_use(proc: Path = _PROC) -> CoreUse:
    """The use until now, to be compared with a later one."""
    return CoreUse(time.monotonic(), _busy_and_idle(proc), _own_seconds())


def idle_cores(
    since: CoreUse | None = None, seconds: float = _OBSERVED, proc: Path = _PROC
) -> float | None:
    """Cores' worth of time that no other process used; None where the system does not say.

    Observed for ``seconds``, which are waited for unless they have passed ``since`` then: loading a
    model takes longer. An older beginning than a few seconds says nothing of now.
    """
    before = since
    if before is None or time.monotonic() - before.at > _STALE:
        before = core_use(proc)
    time.sleep(max(0.0, before.at + seconds - time.monotonic()))
    after = core_use(proc)
    if before.total is None or after.total is None or after.at <= before.at:
        return None
    busy = after.total[0] - before.total[0]
    idle = after.total[1] - before.total[1]
    mine = after.own - before.own
    return (idle + min(mine, busy)) / (after.at - before.at)


def _busy_and_idle(proc: Path) -> tuple[float, float] | None:
    """Seconds that all cores computed and waited since the system began."""
    try:
        with (proc / "stat").open(encoding="ascii") as file:
            ticks = [int(number) for number in file.readline().split()[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return (sum(ticks) - idle) / second, idle / second


def _own_seconds() -> float:
    own = os.times()
    return own.user + own.system


def _groups(
    proc: Path, cgroups: Path, controller: str
) -> Iterator[tuple[list[Path], int]]:
    """The control groups above this process, the nearest first, and their version (1 or 2)."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield _above(cgroups, path), 2
        elif controller in controllers.split(","):
            # The folder is named after the controller, or after all that are mounted together.
            root = next(
                (
                    cgroups / name
                    for name in (controller, controllers)
                    if (cgroups / name).is_dir()
                ),
                cgroups / controller,
            )
            yield _above(root, path), 1


def _above(root: Path, path: str) -> list[Path]:
    folder = root / path.lstrip("/")
    return [
        group for group in (folder, *folder.parents) if root in (group, *group.parents)
    ]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" is no limit
        return None


def _reclaimable(file: Path) -> int:
    """Bytes of cached files, which the kernel gives back when memory is needed."""
    try:
        lines = dict(
            line.split() for line in file.read_text(encoding="ascii").splitlines()
        )
        return int(lines.get("total_inactive_file") or lines["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


def processor() -> str:
    """The model of the processor and what it can do."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            # The first processor's paragraph: all of them take a while where there are hundreds.
            lines = file.read(1 << 14).split(b"\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = (
        b"model",
        b"cpu family",
        b"stepping",
        b"vendor_id",
        b"flags",
        b"Features",
        b"CPU ",
    )
    return b"\n".join(line for line in lines if line.startswith(kept)).decode(
        "ascii", "replace"
    )
