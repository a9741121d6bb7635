"""Builds the wheel of llama-cpp-python that ggext is tested with, once for each machine.

    llama_cpp.py folder       prints the folder of the wheel, for pip's --find-links, or nothing
    llama_cpp.py build        builds the wheel into that folder
    llama_cpp.py environment  prints what the build adds to the environment, a NAME=VALUE a line

The wheels lie in a store of ggext's own, $XDG_CACHE_HOME/ggext/wheels, in a folder for each
version, flags, compiler and processor. They hold llama.cpp without its `common` and `mtmd`, so
pip's cache, which other projects share, never gets one. Decisions go to the standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "llama-cpp-python"
#: The first GCC that keeps the stores of a tile configuration (llama.cpp pull request 26954).
SOUND_GCC = (13, 3)
#: pip's settings that may bring a wheel that someone else built.
SOURCES = ("find-links", "extra-index-url", "index-url", "only-binary", "prefer-binary")


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def requirement() -> str:
    """``llama-cpp-python==…`` as the extra `run` has it."""
    project = tomllib.loads(
        (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    return next(
        r for r in project["optional-dependencies"]["run"] if r.startswith(NAME)
    )


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the first processor and what it can do."""
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
    kept = ("model", "cpu family", "stepping", "vendor_id", "flags", "Features", "CPU ")
    return "\n".join(line for line in lines if line.startswith(kept))


def compiler() -> list[str]:
    """The C++ compiler that CMake takes."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    return [next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "c++")]


def gcc_version(command: list[str]) -> tuple[int, int] | None:
    """GCC's version; None for another compiler."""
    done = subprocess.run(
        [*command, "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    macros = dict(
        re.findall(r"#define (__(?:GNUC|GNUC_MINOR|clang)__) (\d+)", done.stdout)
    )
    if "__clang__" in macros or "__GNUC__" not in macros:
        return None
    return int(macros["__GNUC__"]), int(macros["__GNUC_MINOR__"])


def without_amx(command: list[str], has_amx: bool) -> tuple[bool, str]:
    """Whether AMX must be switched off, and why, in a line."""
    if not has_amx:
        return False, "AMX: nothing to decide, the processor has none"
    if "GGML_NATIVE=OFF" in os.environ.get("CMAKE_ARGS", "").upper():
        return False, "AMX: nothing to decide, GGML_NATIVE is off"
    gcc = gcc_version(command)
    if gcc is not None and gcc < SOUND_GCC:
        version = ".".join(map(str, gcc))
        return (
            True,
            f"AMX: off, because GCC {version} compiles its kernels wrongly (before 13.3)",
        )
    problem = probe_amx(command)
    if problem:
        return True, f"AMX: off, because a small product of tiles {problem}"
    return False, "AMX: on, a small product of tiles is right"


def probe_amx(command: list[str]) -> str:
    """What goes wrong when a product of two tiles is compiled and run; nothing if it is right."""
    with tempfile.TemporaryDirectory(prefix="ggext-amx-") as folder:
        program = Path(folder, "probe")
        flags = ["-O3", "-mamx-tile", "-mamx-int8", "-o", str(program)]
        source = str(HERE / "amx_probe.cpp")
        compiled = subprocess.run(
            [*command, *flags, source], capture_output=True, check=False
        )
        if compiled.returncode != 0:
            return "cannot be compiled"
        status = subprocess.run([program], check=False).returncode
    if status == 0:
        return ""
    return (
        f"ends with signal {-status}"
        if status < 0
        else f"ends with exit status {status}"
    )


def additions(no_binary: bool) -> list[str]:
    """What is added to CMAKE_ARGS. ``no_binary``: pip builds the wheel itself, and keeps it where
    other projects find it, so it gets everything that is in llama-cpp-python."""
    off, line = without_amx(compiler(), " amx_tile" in processor())
    say(line)
    arguments = ["-DGGEXT_WITHOUT_AMX=ON"] if off else []
    if not no_binary:
        arguments += ["-DLLAVA_BUILD=OFF", "-DGGEXT_ENGINE_ONLY=ON"]
    if arguments:
        arguments.append(
            f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={HERE / 'llama-cpp.cmake'}"
        )
    return arguments


def environment(no_binary: bool) -> dict[str, str]:
    """CMAKE_ARGS: the user's first, so that what is added wins."""
    own = os.environ.get("CMAKE_ARGS", "")
    return {
        "CMAKE_ARGS": " ".join([own, *map(shlex.quote, additions(no_binary))]).strip()
    }


def pip(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def pip_settings() -> dict[str, str]:
    """pip's settings in force, from its files and the environment, by their names alone."""
    listed = pip(
        "config", "list", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout
    lines = (line.partition("=") for line in listed.splitlines())
    settings = {name.rpartition(".")[2]: value.strip("'\"") for name, _, value in lines}
    own = {
        k[4:].lower().replace("_", "-"): v
        for k, v in os.environ.items()
        if k[:4] == "PIP_"
    }
    return {**settings, **own}


def is_no_binary(settings: dict[str, str]) -> bool:
    """Whether the user wants this package built by pip."""
    names = re.split(r"[,\s]+", settings.get("no-binary", "").replace("_", "-").lower())
    return ":all:" in names or NAME in names


def is_offered(settings: dict[str, str]) -> bool:
    """Whether pip, as the user set it up, finds a wheel by itself: one for a GPU, say."""
    if not settings.keys() & set(SOURCES):
        return False  # the package index has no wheels of this package
    with tempfile.TemporaryDirectory(prefix="ggext-wheel-") as folder:
        only = ["--no-deps", "--only-binary", NAME, "--dest", folder, requirement()]
        return (
            pip("download", *only, stdout=sys.stderr, stderr=sys.stderr).returncode == 0
        )


def is_installed() -> bool:
    """Whether the environment has the version already, from wherever."""
    from importlib import metadata

    try:
        return f"{NAME}=={metadata.version(NAME)}" == requirement()
    except metadata.PackageNotFoundError:
        return False


def store() -> Path:
    """The folder of the wheel that would be built here now."""
    command = compiler()
    version = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=False
    )
    flags = {
        k: os.environ.get(k, "") for k in ("CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX")
    }
    arguments = [
        a
        for a in environment(no_binary=False)["CMAKE_ARGS"].split()
        if "INCLUDE" not in a
    ]
    cmake = (HERE / "llama-cpp.cmake").read_text(encoding="utf-8")
    libc = [platform.machine(), *platform.libc_ver()]
    here = [requirement(), arguments, flags, version.stdout, processor(), libc, cmake]
    digest = hashlib.sha256(json.dumps(here).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return cache / "ggext" / "wheels" / f"{requirement().replace('==', '-')}-{digest}"


def build() -> int:
    """Builds the wheel, and puts it in its folder when it is whole."""
    folder = store()
    with tempfile.TemporaryDirectory(prefix="ggext-wheel-") as built:
        done = pip(
            *("wheel", "--no-deps", "--no-cache-dir", "--verbose", "--no-binary", NAME),
            *("--wheel-dir", built, requirement()),
            env={**os.environ, **environment(no_binary=False)},
        )
        for wheel in Path(built).glob("*.whl"):
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f"{wheel.name}.{os.getpid()}"
            shutil.copyfile(wheel, beside)
            beside.replace(folder / wheel.name)
    return done.returncode


def main(verb: str) -> int:
    if verb == "build":
        return build()
    settings = pip_settings()
    if verb == "environment":
        if is_no_binary(settings):
            print("\n".join(f"{k}={v}" for k, v in environment(no_binary=True).items()))
        return 0
    if is_installed() or is_no_binary(settings) or is_offered(settings):
        return 0
    print(store())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
