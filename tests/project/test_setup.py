"""How `make` builds llama.cpp: once for each machine, without what no one calls, without AMX where
the compiler breaks it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from ggext.llama_cpp_facts import pin

TOOL = ROOT / ".ci" / "llama_cpp.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_cpp_builder", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip without anybody's settings."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def compiler(tmp_path: Path, *, macros: str, program: str = "exit 1") -> list[str]:
    """A stand-in compiler, which has these macros and compiles everything to this program."""
    path = tmp_path / "c++"
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-dM*) printf "{macros}" ;;\n'
        '*) while [ "$1" != -o ]; do shift; done\n'
        f'printf "#!/bin/sh\\n{program}\\n" > "$2"; chmod +x "$2" ;; esac\n'
    )
    path.chmod(0o755)
    return [str(path)]


GCC_12 = "#define __GNUC__ 12\\n#define __GNUC_MINOR__ 2\\n"
GCC_13_3 = "#define __GNUC__ 13\\n#define __GNUC_MINOR__ 3\\n"
CLANG = "#define __GNUC__ 4\\n#define __GNUC_MINOR__ 2\\n#define __clang__ 1\\n"


@pytest.mark.parametrize(
    ("macros", "program", "off", "words"),
    [
        (GCC_12, "exit 0", True, "GCC 12.2 compiles its kernels wrongly"),
        (GCC_13_3, "exit 0", False, "a small product of tiles is right"),
        (
            GCC_13_3,
            "kill -ILL \\$\\$",
            True,
            "a small product of tiles ends with signal 4",
        ),
        (CLANG, "exit 3", True, "a small product of tiles ends with exit status 3"),
        (CLANG, "exit 0", False, "a small product of tiles is right"),
    ],
)
def test_amx_is_off_where_the_compiler_breaks_it(
    macros: str, program: str, off: bool, words: str, tool: ModuleType, tmp_path: Path
) -> None:
    command = compiler(tmp_path, macros=macros, program=program)
    decided, line = tool.without_amx(command, has_amx=True)
    assert decided is off
    assert words in line
    assert line.startswith("AMX: off, " if off else "AMX: on, ")


def test_nothing_is_decided_without_amx(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.without_amx(["/nonexistent"], has_amx=False) == (
        False,
        "AMX: nothing to decide, the processor has none",
    )
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=off")
    assert tool.without_amx(["/nonexistent"], has_amx=True)[0] is False


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_probe_compiles_and_shows_what_gcc_12_throws_away(
    tool: ModuleType, tmp_path: Path
) -> None:
    """Without AMX it cannot run; the stores of the configuration can be counted."""
    gcc = tool.gcc_version(["g++"])
    if gcc is None or gcc < (11, 0):
        pytest.skip("g++ is not a GCC that knows AMX")
    source = str(TOOL.with_name("amx_probe.cpp"))
    target = ["-O3", "-mamx-tile", "-mamx-int8", "-S", "-o", str(tmp_path / "probe.s")]
    done = subprocess.run(
        ["g++", *target, source], check=False, capture_output=True, text=True
    )
    if "unrecognized command-line option" in done.stderr:
        pytest.skip("g++ compiles for another processor")
    assert done.returncode == 0, done.stderr
    configure = (
        (tmp_path / "probe.s").read_text().split("configure")[1].split("ldtilecfg")[0]
    )
    stores_rows = "movb\t$16" in configure or configure.count("mov") > 8
    assert stores_rows is (gcc >= tool.SOUND_GCC)


def folder(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, TOOL, "folder"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.usefixtures("plain_pip")
def test_the_store_is_ggexts_own_and_knows_flags_and_compiler(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "is_installed", lambda: False)
    first = tool.store()
    assert first.parent == tmp_path / "home" / ".cache" / "ggext" / "wheels"
    assert first.name.startswith(f"llama-cpp-python-{pin.LLAMA_CPP_PYTHON}-")
    assert tool.store() == first
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    cuda = tool.store()
    monkeypatch.delenv("CMAKE_ARGS")
    monkeypatch.setenv("CXX", compiler(tmp_path, macros=GCC_12)[0])
    assert len({first, cuda, tool.store()}) == 3


@pytest.mark.usefixtures("plain_pip")
def test_what_the_user_set_up_comes_first(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.is_offered({}) is False
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = f"llama_cpp_python-{pin.LLAMA_CPP_PYTHON}-py3-none-any.whl"
    info = f"llama_cpp_python-{pin.LLAMA_CPP_PYTHON}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: llama_cpp_python\n"
        f"Version: {pin.LLAMA_CPP_PYTHON}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheels / name, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{info}/{file}", text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    settings = tool.pip_settings()
    assert settings["find-links"] == str(wheels)
    assert tool.is_offered(settings) is True
    (wheels / name).unlink()
    assert tool.is_offered(settings) is False


@pytest.mark.parametrize(
    "names", ["llama-cpp-python", "llama_cpp_python", ":all:", "numpy,:all:"]
)
def test_no_binary_leaves_the_wheel_to_pip_with_everything_in_it(
    names: str, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "without_amx", lambda *_: (True, "AMX: off"))
    assert tool.is_no_binary({"no-binary": names})
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=ON")
    arguments = tool.environment(no_binary=True)["CMAKE_ARGS"].split()
    assert arguments[0] == "-DGGML_BLAS=ON"
    assert "-DGGEXT_WITHOUT_AMX=ON" in arguments
    assert "-DLLAVA_BUILD=OFF" not in arguments
    assert "-DLLAVA_BUILD=OFF" in tool.environment(no_binary=False)["CMAKE_ARGS"]


def test_a_wheel_that_is_installed_is_enough(tool: ModuleType) -> None:
    pytest.importorskip("llama_cpp")
    assert tool.is_installed() is True
    assert folder() == ""
