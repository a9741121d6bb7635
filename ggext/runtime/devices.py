"""The memory of the GPUs that the installed llama.cpp sees."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ggext.runtime import ggml


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device, as its driver says them."""

    name: str
    description: str
    free: int
    total: int


def gpu_memory() -> list[DeviceMemory]:
    """Every device but the CPU; none where llama.cpp was built without one. Raises MissingExtraError, ModelError."""
    functions = ggml.library()
    found = []
    for device in ggml.devices():
        if not device.is_cpu:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            functions.ggml_backend_dev_memory(device.handle, ctypes.byref(free), ctypes.byref(total))
            found.append(DeviceMemory(device.name, device.description, free.value, total.value))
    return found
