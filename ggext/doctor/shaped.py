"""Writes a Llama of a given shape with random weights: its tokens mean nothing, which a clock does
not mind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggext.gguf.header import pack_header, packed_length
from ggext.gguf.types import F16, F32, Field, TensorInfo, aligned, tensor_nbytes

#: Types of weights that can be written.
TYPES = {"q4_0": 2, "q8_0": 8, "f16": F16}
#: Bytes of a block, after the two of its scale.
_BLOCK_BYTES = {2: 16, 8: 32}
CONTEXT = 131072


@dataclass(frozen=True)
class Shape:
    """The numbers of a model without biases."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ff: int
    vocab: int
    tied: bool = False


def _tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    q = s.heads * s.head
    kv = s.kv_heads * s.head
    layer = {
        "attn_norm": (s.width,),
        "attn_q": (s.width, q),
        "attn_k": (s.width, kv),
        "attn_v": (s.width, kv),
        "attn_output": (q, s.width),
        "ffn_norm": (s.width,),
        "ffn_gate": (s.width, s.ff),
        "ffn_up": (s.width, s.ff),
        "ffn_down": (s.ff, s.width),
    }
    ends = ("token_embd",) if s.tied else ("token_embd", "output")
    result: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (s.width, s.vocab) for name in ends
    }
    result["output_norm.weight"] = (s.width,)
    return result | {
        f"blk.{i}.{name}.weight": shape
        for i in range(s.layers)
        for name, shape in layer.items()
    }


def _metadata(s: Shape) -> dict[str, Field]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁{i}" for i in range(s.vocab - len(tokens))]
    values = {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": s.width,
        "llama.feed_forward_length": s.ff,
        "llama.block_count": s.layers,
        "llama.attention.head_count": s.heads,
        "llama.attention.head_count_kv": s.kv_heads,
        "llama.attention.key_length": s.head,
        "llama.attention.value_length": s.head,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": s.head,
        "llama.rope.freq_base": 500000.0,
        "llama.vocab_size": s.vocab,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * s.vocab,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (s.vocab - 259),
    }
    return {key: Field.of(value) for key, value in values.items()}


def _filling(kind: int) -> bytes:
    """Some megabytes of blocks whose values are about 0.03."""
    import numpy as np

    rng = np.random.default_rng(0)
    if kind == F32:
        return np.ones(4096, "<f4").tobytes()
    if kind == F16:
        return rng.normal(0.0, 0.03, 2**21).astype("<f2").tobytes()
    blocks = rng.integers(0, 256, (2**17, 2 + _BLOCK_BYTES[kind]), np.uint8)
    scale = 0.006 if kind == TYPES["q4_0"] else 0.0004
    blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.tobytes()


def write_shaped(path: Path, shape: Shape, kind: str) -> Path:
    """Writes the file, its matrices of a type of `TYPES`."""
    infos = []
    offset = 0
    for name, size in _tensors(shape).items():
        number = F32 if len(size) == 1 else TYPES[kind]
        infos.append(
            TensorInfo(name, size, number, offset, tensor_nbytes(name, size, number))
        )
        offset = aligned(offset + infos[-1].nbytes, 32)
    fields = _metadata(shape)
    start = aligned(packed_length(fields, infos), 32)
    filling = {number: _filling(number) for number in {info.type for info in infos}}
    with path.open("wb") as file:
        file.write(pack_header(fields, infos, start))
        for info in infos:
            file.seek(start + info.offset)
            for at in range(0, info.nbytes, len(filling[info.type])):
                file.write(filling[info.type][: info.nbytes - at])
        file.truncate(start + offset)
    return path
