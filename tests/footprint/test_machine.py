"""Cores: the quotas of both versions of control groups, and what others leave idle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ggext.footprint import defaults, machine


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_quota_above_the_process_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/app\n")
    write(tmp_path / "groups/pod/app/cpu.max", "max 100000\n")
    write(tmp_path / "groups/pod/cpu.max", "150000 100000\n")
    write(tmp_path / "groups/cpu.max", "400000 100000\n")
    assert machine.core_quota(tmp_path / "proc", tmp_path / "groups") == 1.5


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_the_older_control_groups_have_quotas_too(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/box\n3:memory:/box\n")
    write(tmp_path / f"groups/{folder}/box/cpu.cfs_quota_us", "100000\n")
    write(tmp_path / f"groups/{folder}/box/cpu.cfs_period_us", "50000\n")
    write(tmp_path / f"groups/{folder}/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / f"groups/{folder}/cpu.cfs_period_us", "100000\n")
    assert machine.core_quota(tmp_path / "proc", tmp_path / "groups") == 2


@pytest.mark.parametrize("text", ["max 100000", "", "1 0", "a b", "5"])
def test_what_is_no_quota_sets_none(tmp_path: Path, text: str) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "groups/cpu.max", text)
    assert machine.core_quota(tmp_path / "proc", tmp_path / "groups") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (3.9, 3), (0.5, 1), (64.0, 8)])
def test_threads_keep_within_the_quota_and_the_affinity(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    """Two threads on a quota of one core made 18 to 23 tokens a second, one makes 37 to 40."""
    monkeypatch.setattr(defaults, "cores_of_affinity", lambda: 8)
    monkeypatch.setattr(defaults, "core_quota", lambda: quota)
    assert defaults.physical_cores() == cores


@pytest.mark.parametrize(
    ("idle", "threads"), [(None, 4), (4.0, 4), (2.4, 2), (0.1, 1), (0.0, 1), (9.0, 4)]
)
def test_cores_that_others_use_are_left_to_them(
    monkeypatch: pytest.MonkeyPatch, idle: float | None, threads: int
) -> None:
    monkeypatch.setattr(defaults, "idle_cores", lambda _: idle)
    assert defaults.threads_now(4) == threads
    assert defaults.threads_now(1) == 1


def test_idle_cores_are_measured(tmp_path: Path) -> None:
    idle = machine.idle_cores(None, 0.05)
    assert idle is None or idle >= 0
    assert machine.idle_cores(None, 0.0, tmp_path) is None


def test_what_passed_since_a_load_began_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(machine.time, "sleep", waits.append)
    now = machine.core_use()
    machine.idle_cores(replace(now, at=now.at - 0.5))
    machine.idle_cores(replace(now, at=now.at - 0.02))
    machine.idle_cores(replace(now, at=now.at - 60))
    assert waits == [0.0, pytest.approx(0.08, abs=0.01), pytest.approx(0.1, abs=0.01)]
