"""What computes: llama.cpp's library, its kernels and devices, and the package's own rotation."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ggext.doctor.report import Finding
from ggext.errors import GgextError
from ggext.llama_cpp_facts.pin import LLAMA_CPP_COMMIT, LLAMA_CPP_PYTHON


def own_findings() -> Iterator[Finding]:
    """The native rotation on this machine's processor and GPU."""
    from ggext import native

    yield Finding("backends", "rotation", "ok", f"CPU, {native.vectors()}")
    kind = gpu_here()
    if kind in ("cuda", "metal"):
        name = f"rotation on {kind}"
        if native.available(kind):
            yield Finding("backends", name, "ok", "")
        else:
            remedy = (
                f"pip install . --config-settings=cmake.define.GGEXT_{kind.upper()}=ON"
            )
            yield Finding(
                "backends", name, "missing", "not built, or it finds no device", remedy
            )


def llama_cpp() -> Iterator[Finding]:
    """The library's commit, and what its backends were built with."""
    from ggext.runtime import devices

    pin = f'"llama-cpp-python=={LLAMA_CPP_PYTHON}"'
    again = f"pip install --force-reinstall --no-cache-dir {pin}"
    try:
        commit = devices.commit()
        features = devices.features()
    except GgextError as error:
        yield Finding("backends", "llama.cpp", "wrong", str(error), again)
        return
    if commit == "unknown" or commit.startswith(LLAMA_CPP_COMMIT[:7]):
        yield Finding("backends", "llama.cpp", "ok", commit)
    else:
        value = f"{commit}, but ggext reads files as {LLAMA_CPP_COMMIT} does"
        yield Finding("backends", "llama.cpp", "wrong", value, again)
    for backend, names in features.items():
        yield Finding("backends", f"built with {backend}", "ok", " ".join(names))


def kernels() -> Iterator[Finding]:
    """Whether the processor can execute the matrix kernels, and what they are worth, measured."""
    from ggext.runtime import kernels

    verdict = kernels.find_verdict()
    if verdict.fatal:
        value = f"ends the process: {verdict.fatal}"
        yield Finding(
            "backends", "matrix kernels", "wrong", value, kernels.rebuild_command()
        )
        return
    if verdict.untested:
        yield Finding(
            "backends", "matrix kernels", "missing", f"not tried: {verdict.untested}"
        )
        return
    worth = _worth(kernels.speeds(verdict))
    for name, reason in verdict.unusable.items():
        value = (
            f"switched off with all special ones: {reason}; what that costs: {worth}"
        )
        remedy = kernels.rebuild_command()
        yield Finding("backends", f"matrix kernels {name}", "missing", value, remedy)
    if not verdict.unusable:
        yield Finding("backends", "matrix kernels", "ok", worth)


def _worth(speeds: list[tuple[str, str, float]]) -> str:
    """How much faster the special kernels that work are than the plain ones, type by type."""
    plain: dict[str, float] = {}
    gains: list[str] = []
    names: set[str] = set()
    for buffer_type, name, microseconds in speeds:
        if name in plain:
            names.add(buffer_type)
            gains.append(f"{name} {plain[name] / microseconds:.1f}")
        else:
            plain[name] = microseconds
    if not gains:
        return "there are no special ones"
    return (
        f"times as fast by {' and '.join(sorted(names))} as by the plain ones, measured on one "
        f"thread: {', '.join(gains)}"
    )


def devices() -> Iterator[Finding]:
    """ggml's devices, and a GPU that the library was built without."""
    from ggext.runtime import devices, ggml_devices

    try:
        listed = ggml_devices.devices()
        memories = devices.gpu_memory()
    except GgextError:  # reported already
        return
    for device in listed:
        memory = next((m for m in memories if m.name == device.name), None)
        free = (
            f", {memory.free >> 20:,} of {memory.total >> 20:,} MiB free"
            if memory
            else ""
        )
        yield Finding(
            "backends", f"device {device.name}", "ok", device.description + free
        )
    kind = gpu_here()
    if kind and not memories:
        yield _unused_gpu(kind)


def _unused_gpu(kind: str) -> Finding:
    flag = {"cuda": "CUDA", "metal": "METAL", "rocm": "HIP"}[kind]
    remedy = (
        f'CMAKE_ARGS="-DGGML_{flag}=on" pip install --force-reinstall --no-deps --no-cache-dir '
        f'"llama-cpp-python=={LLAMA_CPP_PYTHON}"'
    )
    value = f"built without {kind}"
    if kind == "cuda" and not shutil.which("nvcc"):
        value += " (needs the CUDA toolkit's nvcc)"
    return Finding("backends", "llama.cpp on the GPU", "missing", value, remedy)


def gpu_here(root: Path = Path("/")) -> Literal["cuda", "rocm", "metal"] | None:
    """The kind of GPU that this machine has a driver for."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "metal"
    if (root / "proc/driver/nvidia/version").exists():
        return "cuda"
    return "rocm" if (root / "dev/kfd").exists() else None
