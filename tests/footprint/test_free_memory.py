"""How much memory is free, in containers and outside."""

from __future__ import annotations

from pathlib import Path

from planned import GIB

from ggext.footprint import machine


class System:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.write(
            self.proc / "meminfo", "MemTotal:  9000 kB\nMemAvailable:    1000 kB\n"
        )

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, **files: str) -> None:
        for name, text in files.items():
            self.write(self.groups / path / name.replace("__", "."), text)

    def free(self) -> int | None:
        return machine.free_memory(self.proc, self.groups)


def test_free_memory_is_what_the_system_calls_available(tmp_path: Path) -> None:
    assert System(tmp_path).free() == 1000 * 1024


def test_a_container_s_limit_counts_and_its_cached_files_do_not(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.write(system.proc / "self" / "cgroup", "0::/a/b\n")
    system.group("a/b", memory__max="max\n", memory__current="5\n")
    assert system.free() == 1000 * 1024
    system.group(
        "a",
        memory__max="900000\n",
        memory__current="700000\n",
        memory__stat="file 1\ninactive_file 50000\n",
    )
    assert system.free() == 250000
    system.group("", memory__max="800000\n", memory__current="700000\n")
    assert system.free() == 100000
    system.group("", memory__max="100\n", memory__current="700000\n")
    assert system.free() == 0


def test_the_older_kind_of_container_counts_too(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.write(
        system.proc / "self" / "cgroup", "12:cpu,cpuacct:/x\n5:memory:/docker/1\n0::/\n"
    )
    system.group(
        "memory/docker/1",
        memory__limit_in_bytes="600000\n",
        memory__usage_in_bytes="500000\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 20000\n",
    )
    assert system.free() == 120000


def test_elsewhere_a_share_of_the_physical_memory_counts(tmp_path: Path) -> None:
    free = machine.free_memory(tmp_path / "none", tmp_path / "none")
    assert free is not None
    assert free > GIB // 4
