"""Files whose gain is folded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.rope.encoding import EncodingName
from ggext.rope.scaling import RopeScaling

YARN = RopeScaling("yarn", factor=4)
BETAS = RopeScaling("yarn", factor=4, beta_slow=0.1, attention_factor=1.2)


def bake(
    model: Path,
    out: Path,
    rope: RopeScaling | None,
    encoding: EncodingName | None = "folded",
    **options: Any,
) -> GgufFile:
    convert(ConvertOptions(model, out, rope, encoding=encoding, **options))
    return read_gguf(out)


def floats(gguf: GgufFile, name: str) -> np.ndarray[Any, Any]:
    return gguf.float_tensor(name).reshape(gguf.tensors[name].shape[::-1])


def logits_of(path: Path, count: int = 200) -> np.ndarray[Any, Any]:
    from ggext.runtime.engine import Model, Session, SessionOptions

    with Model.open(path) as model:
        ids = [(7 * i + i // 5) % (model.n_vocab - 2) + 2 for i in range(count)]
        with Session(
            model, SessionOptions(n_ctx=count, kv_type="f32", flash_attention=False)
        ) as session:
            return session.logits(ids)


def divergence(expected: Path, actual: Path) -> float:
    from ggext.proof import reference

    kl, _ = reference.divergence(logits_of(expected), logits_of(actual))
    return float(kl.mean())


def k_norms(data: bytes) -> np.ndarray[Any, Any]:
    """Norm of each cell's K in layer 0 of a sequence's state (llama_state_seq_get_data)."""
    _, _, _, cells = struct.unpack_from("<IiII", data)
    at = 16
    for _ in range(cells):
        _, n_seq = struct.unpack_from("<iI", data, at)
        at += 8 + 4 * n_seq
    _, _, kind, row_bytes = struct.unpack_from("<IIiQ", data, at)
    assert kind == 0  # float32
    rows = np.frombuffer(data, "<f4", cells * row_bytes // 4, at + 20).reshape(
        cells, -1
    )
    return np.linalg.norm(rows.astype("f8"), axis=1)


def norms_after_shifts(path: Path, shifts: int) -> np.ndarray[Any, Any]:
    """K norms of the oldest cells that are never evicted, relative to those before the shifts."""
    import ctypes

    from ggext.runtime import llama
    from ggext.runtime.engine import Model, Session, SessionOptions

    lib = llama.lib()
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(n_ctx=256, kv_type="f32")) as session,
    ):
        context, memory = session.cache.handle, session.cache._memory

        def state() -> np.ndarray[Any, Any]:
            size = lib.llama_state_seq_get_size(context, 0)
            buffer = (ctypes.c_uint8 * size)()
            return k_norms(
                bytes(buffer[: lib.llama_state_seq_get_data(context, buffer, size, 0)])
            )

        session.evaluate([5] * 130)
        before = state()
        for step in range(shifts):
            assert lib.llama_memory_seq_rm(memory, 0, 0, 1)
            lib.llama_memory_seq_add(memory, 0, 1, -1, -1)
            token = (ctypes.c_int32 * 1)(7 + step % 3)
            assert lib.llama_decode(context, lib.llama_batch_get_one(token, 1)) == 0
        after = state()
    kept = 130 - shifts  # token 5 all along, so every kept cell had the same norm
    survivors = (
        np.sort(np.abs(after / before[0] - 1))[:kept] if shifts else after / before
    )
    return np.asarray(survivors)
