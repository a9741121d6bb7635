"""The memory of the GPUs that the installed llama.cpp sees."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ggext.runtime import ggml, ggml_devices, llama


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device, as its driver says them."""

    name: str
    description: str
    free: int
    total: int


def gpu_memory() -> list[DeviceMemory]:
    """Every device but the CPU; none where llama.cpp was built without one. Raises
    MissingExtraError, ModelError."""
    functions = ggml.library()
    result = []
    for device in ggml_devices.devices():
        if not device.is_cpu:
            free = ctypes.c_size_t()
            total = ctypes.c_size_t()
            functions.ggml_backend_dev_memory(
                device.handle, ctypes.byref(free), ctypes.byref(total)
            )
            result.append(
                DeviceMemory(device.name, device.description, free.value, total.value)
            )
    return result


def commit() -> str:
    """The commit of llama.cpp's repository that the installed library was built from, as it says it
    itself."""
    return str((ggml.library().ggml_commit() or b"unknown").decode("ascii", "replace"))


def features() -> dict[str, list[str]]:
    """What the library's backends were built with and use: ``{"CPU": ["AVX2", ...]}``."""
    text = llama.lib().llama_print_system_info().decode("utf-8", "replace")
    result: dict[str, list[str]] = {}
    backend = ""
    for part in text.split("|"):
        name, _, value = part.partition("=")
        first, colon, rest = name.partition(":")
        backend, feature = (first.strip(), rest) if colon else (backend, name)
        if value.strip() not in ("", "0"):
            result.setdefault(backend, []).append(feature.strip())
    return result
