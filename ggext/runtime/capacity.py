"""How long a context this machine holds: the KV cache's bytes against the free memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ggext.runtime.model import Model

STEP = 256  # llama.cpp rounds a context up to a multiple of this
#: Type of cached keys and values → values in a block, bytes of it (ggml-common.h).
_KV_BLOCKS = {
    "f16": (1, 2), "bf16": (1, 2), "f32": (1, 4), "q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22),
    "q4_1": (32, 20), "q4_0": (32, 18), "iq4_nl": (32, 18),
}  # fmt: skip
_HEADROOM = 0.95
_SMALL_MODEL = 20_000_000  # parameters
KV_TYPES = tuple(_KV_BLOCKS)


def kv_bytes_per_token(model: Model, kv_type: str = "f16") -> int:
    """Bytes of KV cache that one token takes, all layers together.

    An upper bound where layers keep less than the whole context (recurrent or MLA layers).
    """
    keys = model.header.arch_keys()
    layers = int(keys.get("block_count", 0))
    kv_heads = keys.get("attention.head_count_kv", _first(keys.get("attention.head_count", 1)))
    total = sum(kv_heads) if isinstance(kv_heads, list) else layers * int(kv_heads)
    values, size = _KV_BLOCKS[kv_type]
    return total * sum(-(-width // values) * size for width in head_sizes(model))


def head_sizes(model: Model) -> tuple[int, int]:
    """Values of a head's key and of its value."""
    keys = model.header.arch_keys()
    heads = _first(keys.get("attention.head_count", 1))
    size = int(keys.get("embedding_length", 0)) // max(heads, 1)
    return int(keys.get("attention.key_length", size)), int(keys.get("attention.value_length", size))


def block_of(kv_type: str) -> int:
    """Values that the type stores together: a head's size must be a multiple."""
    return _KV_BLOCKS[kv_type][0]


def ggml_type(kv_type: str) -> int:
    """ggml's number of the type; llama-cpp-python does not name them all."""
    from gguf import GGMLQuantizationType

    return int(GGMLQuantizationType[kv_type.upper()])


def is_quantized(kv_type: str) -> bool:
    """Whether the type stores blocks, and so needs flash attention for values."""
    return block_of(kv_type) > 1


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else max(value, default=1)


def attention_bytes(model: Model, n_ctx: int, n_batch: int) -> int:
    """Bytes of the score matrix that attention holds without flash attention."""
    heads = _first(model.header.arch_keys().get("attention.head_count", 1))
    return 4 * n_ctx * n_batch * heads


def largest_context(model: Model, kv_type: str, n_batch: int) -> int | None:
    """Tokens of context that fit into the memory that is free beside the weights, None: unknown.

    Known only when the model runs on the CPU, whose memory the kernel promises generously and
    takes back by killing; a GPU refuses at once.
    """
    free = free_memory()
    if free is None or model.offloads:
        return None
    embedding = int(model.header.arch_keys().get("embedding_length", 0))
    compute = 4 * n_batch * (model.n_vocab + 16 * embedding)
    budget = int(free * _HEADROOM) - model.size - compute
    per_token = max(kv_bytes_per_token(model, kv_type), 1)
    return max(budget // per_token // STEP * STEP, 0)


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _physical_memory()


def _physical_memory() -> int | None:
    sysconf: Any = getattr(os, "sysconf", None)  # not on Windows
    try:
        return int(sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES"))
    except (TypeError, ValueError, OSError):
        return None


def batch_for(model: Model, threads: int) -> int:
    """Tokens to evaluate at a time.

    A prefill is cancelled between two operations of the graph, so on a CPU the largest of them shall take less than a
    tenth of a second even at 25 GFLOP/s a thread. Below 64 llama.cpp's flash attention is four times slower (measured
    on 51 million parameters; 64, 128 and 256 are alike within 5 %).
    """
    if model.offloads:
        return 512
    sizes = (info.shape[0] * info.shape[1] for name, info in model.header.tensors.items()
             if len(info.shape) > 1 and name.startswith("blk."))  # fmt: skip
    return 128 if 2 * 128 * max(sizes, default=0) < 0.1 * 25e9 * threads else 64


def threads_for(model: Model) -> int:
    """Threads to run the model with: the physical cores, but one for a model of a few million
    parameters, whose threads would only wait for each other (measured on 0.26 million and two busy
    cores: 3000 tokens a second with one thread, 270 with two)."""
    return 1 if model.n_params < _SMALL_MODEL else physical_cores()


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once, where Linux says so."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    siblings = set()
    for cpu in cpus:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read())
        except OSError:
            return len(cpus)
    return max(len(siblings), 1)
