"""Writes a random Llama in Q8_0 as a GGUF file, as llama.cpp does: 151,936 tokens, and no slack in
the header.

python benchmarks/large_gguf.py FILE GB [--sparse]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from ggext.gguf.header import pack_header, packed_length
from ggext.gguf.types import Field, TensorInfo, aligned, tensor_nbytes

F32, Q8_0 = 0, 8
N_VOCAB, N_EMBD, N_FF, N_KV = 151_936, 3072, 8192, 1024


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    square, down = (N_EMBD, N_EMBD), (N_FF, N_EMBD)
    layer = {
        "attn_norm": (N_EMBD,),
        "attn_q": square,
        "attn_k": (N_EMBD, N_KV),
        "attn_v": (N_EMBD, N_KV),
        "attn_output": square,
        "ffn_norm": (N_EMBD,),
        "ffn_gate": down[::-1],
        "ffn_up": down[::-1],
        "ffn_down": down,
    }
    result: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_EMBD, N_VOCAB),
        "output_norm.weight": (N_EMBD,),
    }
    return result | {
        f"blk.{i}.{name}.weight": shape
        for i in range(layers)
        for name, shape in layer.items()
    }


def metadata(layers: int) -> dict[str, Field]:
    values = {
        "general.architecture": "llama",
        "general.name": "benchmark",
        "general.file_type": 7,
        "llama.context_length": 8192,
        "llama.embedding_length": N_EMBD,
        "llama.feed_forward_length": N_FF,
        "llama.block_count": layers,
        "llama.attention.head_count": 24,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 128,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [f"tok{i:06}" for i in range(N_VOCAB)],
        "tokenizer.ggml.token_type": [1] * N_VOCAB,
        "tokenizer.ggml.merges": [f"a{i} b{i}" for i in range(N_VOCAB)],
    }
    return {key: Field.of(value) for key, value in values.items()}


def write_model(path: Path, gb: float, *, sparse: bool) -> None:
    infos, offset = [], 0
    per_layer = sum(
        tensor_nbytes("", s, Q8_0) for n, s in shapes(1).items() if n.startswith("blk")
    )
    layers = max(
        1, round((gb * 1e9 - tensor_nbytes("", (N_EMBD, N_VOCAB), Q8_0)) / per_layer)
    )
    for name, shape in shapes(layers).items():
        kind = F32 if len(shape) == 1 else Q8_0
        infos.append(
            TensorInfo(name, shape, kind, offset, tensor_nbytes(name, shape, kind))
        )
        offset = aligned(offset + infos[-1].nbytes, 32)
    fields = metadata(layers)
    start = aligned(packed_length(fields, infos), 32)
    blocks = np.random.default_rng(0).integers(0, 256, (500_000, 34), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    data = {Q8_0: blocks.tobytes(), F32: np.ones(N_EMBD, "<f4").tobytes()}
    with path.open("wb") as file:
        file.write(pack_header(fields, infos, start))
        for info in infos if not sparse else ():
            file.seek(start + info.offset)
            for at in range(0, info.nbytes, len(data[info.type])):
                file.write(data[info.type][: info.nbytes - at])
        file.truncate(start + offset)
        os.fsync(file.fileno())


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), float(sys.argv[2]), sparse="--sparse" in sys.argv)
