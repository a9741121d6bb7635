"""A library whose kernels the processor cannot execute: a child dies of it, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path

import pytest

from ggext.doctor import runs
from ggext.doctor.report import Finding
from ggext.errors import ModelError
from ggext.folders import cache_folder
from ggext.runtime import kernels

pytest.importorskip("llama_cpp")

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux",
        reason="the stand-in library puts itself in front as ELF does",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]

#: The products of Q4_0 matrices that were laid out for a kernel of their own, on x86-64 and on ARM.
SPECIAL = [f"ggml_{kind}_q4_0_{shape}_q8_0" for kind in ("gemm", "gemv")
           for shape in ("4x4", "4x8", "8x8")]  # fmt: skip
PLAIN = ["ggml_vec_dot_q5_0_q8_0"]

Build = Callable[[str], Path]


def traps(names: list[str]) -> str:
    """C for functions at which the processor stops: illegal instruction."""
    return "\n".join(f"void {name}(void) {{ __builtin_trap(); }}" for name in names)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Puts a library in place of the installed llama: its own functions come before the real ones,
    which it links to."""
    real = kernels.find_library()
    assert real is not None

    def compile_library(code: str) -> Path:
        folder = tmp_path / "library"
        folder.mkdir()
        source = tmp_path / "standin.c"
        source.write_text(code)
        needed = [str(path) for path in sorted(real.parent.glob("lib*.so.?"))]
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-o",
            str(folder / "libllama.so"),
            str(source),
        ]
        linked = ["-Wl,--no-as-needed", f"-Wl,-rpath,{real.parent}", *needed]
        subprocess.run([*command, *linked], check=True)
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
        return folder

    return compile_library


def needs_special_kernels() -> None:
    """Skips on a processor for which ggml has no special kernel of Q4_0."""
    timed = {(buffer, name) for buffer, name, _ in kernels.speeds(kernels.Verdict())}
    if ("CPU_REPACK", "Q4_0") not in timed:
        pytest.skip("ggml has no special kernel for Q4_0 on this processor")


def chat(path: Path) -> subprocess.CompletedProcess[str]:
    """One question to a file, in a process as a user starts it."""
    command = [
        sys.executable,
        "-m",
        "ggext",
        "chat",
        str(path),
        "-p",
        "Where is the map?",
    ]
    return subprocess.run(
        [*command, "--max-tokens", "4", "--temperature", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def q4_0(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in Q4_0."""
    from ggext.runtime import quantizer

    path = tmp_path_factory.mktemp("models") / "demo-q4_0.gguf"
    quantizer.quantize(demo_gguf, path, "Q4_0")
    return path


def test_here_every_kernel_runs_and_is_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels._verdict.cache_clear()
    first = kernels.find_verdict()
    assert first == kernels.Verdict()
    kernels._verdict.cache_clear()
    monkeypatch.setattr(kernels, "Child", None)  # a second child would raise
    assert kernels.find_verdict() == first


def test_without_the_guard_the_special_kernels_end_the_process(
    build: Build, q4_0: Path
) -> None:
    """Otherwise the next test proves nothing."""
    needs_special_kernels()
    build(traps(SPECIAL))
    code = (
        "import sys, ggext.runtime.kernels as k; k.check = lambda: k.Verdict();"
        "from ggext import Model; list(Model(sys.argv[1]).complete('a b c d'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, q4_0], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGILL


def test_special_kernels_that_die_are_switched_off_and_named(
    build: Build, q4_0: Path
) -> None:
    needs_special_kernels()
    build(traps(SPECIAL))
    first = chat(q4_0)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    words = " ".join(first.stderr.split())
    assert (
        "(CPU_REPACK: a trial died of SIGILL, an illegal instruction, at a Q4_0 matrix)"
        in words
    )
    (kept,) = (cache_folder() / "kernels").iterdir()
    assert json.loads(kept.read_text())["unusable"].keys() == {"CPU_REPACK"}
    before = kept.stat().st_mtime_ns
    second = chat(q4_0)
    assert second.stdout == first.stdout
    assert kept.stat().st_mtime_ns == before


def test_plain_kernels_that_die_are_one_error(build: Build, q4_0: Path) -> None:
    folder = build(traps(PLAIN))
    for _ in range(2):  # tried, and read from the cache
        done = chat(q4_0)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith(
            f"ggext: {folder / 'libllama.so'} cannot be used on this processor:"
        )
        assert "died of SIGILL" in line
        assert "at a Q5_0 matrix" in line
        assert "pip install --force-reinstall" in line


def test_a_library_that_dies_when_it_is_loaded_is_one_error(
    build: Build, q4_0: Path
) -> None:
    build("__attribute__((constructor)) static void start(void) { __builtin_trap(); }")
    done = chat(q4_0)
    assert done.returncode == 1
    assert "died of SIGILL" in done.stderr
    assert "when it is loaded" in done.stderr


def doctor(*steps: str) -> dict[str, Finding]:
    return {
        finding.name: finding
        for finding in runs.findings(list(steps), lambda _: None, in_child=True)
    }


def test_the_doctor_says_what_is_switched_off_and_what_it_costs(build: Build) -> None:
    needs_special_kernels()
    build(traps(SPECIAL))
    found = doctor("matrix kernels", "embedded model")
    kernel = found["matrix kernels CPU_REPACK"]
    assert kernel.state == "missing"
    assert "SIGILL" in kernel.value
    assert "what that costs" in kernel.value
    assert "--no-binary llama-cpp-python" in kernel.remedy
    assert found["embedded model"].state == "ok"


def test_the_doctor_measures_what_special_kernels_are_worth() -> None:
    needs_special_kernels()
    found = doctor("matrix kernels")["matrix kernels"]
    assert found.state == "ok"
    assert "times as fast by CPU_REPACK as by the plain ones" in found.value
    assert "Q4_0 " in found.value


def test_the_doctor_survives_a_library_that_aborts(build: Build) -> None:
    build("#include <stdlib.h>\nvoid llama_model_load_from_file(void) { abort(); }")
    found = doctor("form of the cache", "embedded model", "native rotation")
    for name in ("form of the cache", "embedded model"):
        assert found[name].state == "wrong"
        assert "died of SIGABRT" in found[name].value
    assert found["native rotation"].state == "ok"


def test_another_build_is_tried_again(build: Build) -> None:
    first = build("int nothing;")
    verdict = kernels.find_verdict()
    assert (verdict.unusable, verdict.fatal) == ({}, "")
    kernels._verdict.cache_clear()
    os.utime(first / "libllama.so", (1, 1))
    kernels.find_verdict()
    assert len(list((cache_folder() / "kernels").iterdir())) == 2


def test_a_host_that_is_not_python_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spawn, "get_executable", lambda: "/opt/host/editor")
    kernels._verdict.cache_clear()
    verdict = kernels.find_verdict()
    kernels._verdict.cache_clear()
    assert "is no Python to start" in verdict.untested
    assert verdict.extra_buffers is not kernels._has_amx()
    assert not (cache_folder() / "kernels").exists()


def test_a_frozen_program_without_the_hooks_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    kernels._verdict.cache_clear()
    verdict = kernels.find_verdict()
    kernels._verdict.cache_clear()
    assert "freeze_support" in verdict.untested


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import ggext"],
        ["-m", "ggext", "--help"],
        ["-m", "ggext", "chat", "--help"],
        ["-m", "ggext", "convert", "demo", "--yarn", "4"],
        ["-m", "ggext", "inspect", "FILE"],
    ],
    ids=" ".join,
)
def test_what_needs_no_engine_loads_no_library(
    arguments: list[str], build: Build, demo_gguf: Path, tmp_path: Path
) -> None:
    build("__attribute__((constructor)) static void start(void) { __builtin_trap(); }")
    given = [
        str(demo_gguf) if argument == "FILE" else argument for argument in arguments
    ]
    subprocess.run(
        [sys.executable, *given], check=True, capture_output=True, cwd=tmp_path
    )
    assert not (cache_folder() / "kernels").exists()  # nor was it tried


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"unusable": 3}', '{"fatal": "x", "a": 1}']
)
def test_a_damaged_verdict_is_not_believed(content: str, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(content)
    assert kernels._read(path) is None


def test_a_fatal_verdict_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = kernels.Verdict(fatal="it died of SIGILL when it is loaded")
    monkeypatch.setattr(kernels, "find_verdict", lambda: verdict)
    with pytest.raises(ModelError, match="was built for another processor"):
        kernels.check()


def test_ggml_is_in_the_process_once() -> None:
    """Opened by two names it is there twice, with two registries of devices."""
    code = (
        "from ggext.runtime import ggml_devices; ggml_devices.devices()\n"
        "import pathlib\n"
        "maps = pathlib.Path('/proc/self/maps').read_text().split()\n"
        "print(*sorted({pathlib.Path(m).name.partition('.so')[0] + ' ' + m for m in maps\n"
        "               if 'libggml' in m}), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names
    assert len(names) == len(set(names)), done.stdout
