"""A model's dimensions as llama.cpp reads them from a GGUF header, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggext.errors import GgufError
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import TensorInfo
from ggext.llama_cpp_facts.compressed import (
    CHOSEN,
    COMPRESSED,
    compress_ratios,
)
from ggext.llama_cpp_facts.indexer import IN_BLOCKS, INDEXED, choosing_layers
from ggext.llama_cpp_facts.key_numbers import Numbers
from ggext.llama_cpp_facts.limits import MAX_EXPERTS, MAX_LAYERS
from ggext.llama_cpp_facts.recurrent import (
    CONVOLUTIONS,
    DELTA_NETS,
    MAMBAS,
    attending_layers,
    recurrent_layers,
)
from ggext.llama_cpp_facts.sliding import (
    SHARED_LAYERS,
    WINDOW,
    sliding_layers,
    window_of,
)

# What a header says of a model whose memory is no plain KV cache: a state that does not grow, a
# second cache, shared layers, an encoder; and the architectures that do not say it.
_NOT_PLAIN_KEYS = (
    "ssm.",
    "wkv.",
    "shortconv.",
    "kda.",
    "hyper_connection.",
    "attention.indexer.",
)
_NOT_PLAIN = {
    "gemma3n",
    "llama4",
    "minimax-01",
    "t5",
    "t5encoder",
    "wavtokenizer-dec",
}


@dataclass(frozen=True)
class Layer:
    """Heads and their sizes in values, no heads of keys where it does not attend."""

    heads: int
    kv_heads: int
    key: int
    value: int
    # it attends to a window, so that its cache is small
    slides: bool
    # values of a state that does not grow: of a convolution, and of a delta net or of Mamba 2
    convolved: int = 0
    state: int = 0
    # it reads the keys and values of an earlier one
    shares: bool = False
    # values of the key by which an indexer chooses the tokens that are attended to; 0: it has none
    indexed: int = 0
    # tokens that become one, next to the window; 0: the layer has the window alone
    ratio: int = 0

    @property
    def recurs(self) -> bool:
        return self.convolved > 0

    @property
    def key_row(self) -> int:
        return self.kv_heads * self.key

    @property
    def value_row(self) -> int:
        return self.kv_heads * self.value

    @property
    def rows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Values of a token's keys and of one head of them, and the same of its values."""
        return (self.key_row, self.key), (self.value_row, self.value)


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys for all heads together, and no values next to them."""

    # Values of a key that are not rotated.
    rank: int
    # Values of a key that are.
    rope: int
    # Size of a head's key outside the cache.
    head: int
    # Size of a head's value outside the cache.
    value: int


@dataclass(frozen=True)
class Architecture:
    """A header, read as far as the memory plan needs."""

    name: str
    layers: tuple[Layer, ...]
    width: int
    vocabulary: int
    # In tokens; 0: no layer slides.
    window: int
    latent: Latent | None
    # Of each token.
    experts_used: int
    context: int
    # Residual streams next to each other; 0: there is one, as usual.
    streams: int
    keys: Mapping[str, Any]
    # Those of the file, by name.
    tensors: Mapping[str, TensorInfo]

    def rows(self, name: str) -> int:
        """The rows of a matrix, which are the values that it makes of a token; 0 where the file has
        none."""
        info = self.tensors.get(name)
        return info.shape[1] if info is not None and len(info.shape) > 1 else 0

    def has(self, name: str) -> bool:
        return name in self.tensors

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.keys.get(key, default))


def architecture(header: GgufFile) -> Architecture:
    """The dimensions of a model. Raises ``GgufError`` for an architecture whose memory is not
    computed here, and for a header that lacks a number or has an impossible one."""
    read = _Numbers(header)
    _check_known(read)
    layers = read.number("block_count", most=MAX_LAYERS) - read.number(
        "nextn_predict_layers", 0, least=0
    )
    if layers < 1:
        raise GgufError(
            f"{header.path}: no layer is left but those of nextn_predict_layers; the file is "
            "damaged"
        )
    width = read.number("embedding_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GgufError(
            f"{header.path} has no token_embd.weight, so it is not a model that continues text"
        )
    latent = _latent(read)
    window = _window(read, layers)
    slides = _slides(read, layers) if window else [False] * layers
    window *= any(slides)
    heads = read.of_layers("attention.head_count", layers)
    head = width // max(heads[0], 1)
    kv_heads = read.of_layers("attention.head_count_kv", layers, heads)
    sizes = [_head_sizes(read, head, latent, swa) for swa in slides]
    states, attends = _states(read, layers, width)
    ratios, streams = _compressed(read, layers)
    own = layers - read.number(SHARED_LAYERS, 0, least=0)
    experts_used = 0
    if "expert_count" in read.keys:
        experts_used = read.number("expert_used_count", least=1, most=MAX_EXPERTS)
    indexed = _indexed(read, layers, ratios, kv_heads)
    return Architecture(
        name=header.arch,
        layers=tuple(
            Layer(
                *(heads[i], kv_heads[i] * attends[i], *sizes[i], slides[i], *states[i]),
                shares=i >= own,
                indexed=indexed[i],
                ratio=ratios[i],
            )
            for i in range(layers)
        ),
        width=width,
        vocabulary=embedding.shape[1],
        window=window,
        latent=latent,
        experts_used=experts_used,
        context=read.number("context_length"),
        streams=streams,
        keys=read.keys,
        tensors={**header.tensors, **_under_usual_names(header.tensors)},
    )


def _check_known(read: _Numbers) -> None:
    """Raises ``GgufError`` for an architecture whose memory is not computed here."""
    header = read.header
    indexed = (*INDEXED, *COMPRESSED, *IN_BLOCKS)
    known = header.arch in (*DELTA_NETS, *CONVOLUTIONS, *MAMBAS, *indexed)
    plain = known or (
        header.arch not in _NOT_PLAIN
        and not any(key.startswith(_NOT_PLAIN_KEYS) for key in read.keys)
    )
    if not plain or read.keys.get("attention.causal") is False:
        raise GgufError(
            f"{header.path}: what llama.cpp allocates for {header.arch} is not known here: load it "
            "to see"
        )


def _under_usual_names(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The norms that Falcon-H1's loader wants without a kind."""
    return {
        f"{name}.weight": info
        for name, info in tensors.items()
        if name.endswith(".ffn_norm")
    }


class _Numbers(Numbers):
    """The same of a file, named in the errors. All raise ``GgufError``."""

    def __init__(self, header: GgufFile) -> None:
        super().__init__(header.arch_keys())
        self.header = header

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        try:
            return super()._checked(f"{self.header.arch}.{key}", value, least, most)
        except ValueError as error:
            raise GgufError(
                f"{self.header.path}: {error}; the file is damaged"
            ) from None

    def of_layers(
        self, key: str, layers: int, default: list[int] | None = None
    ) -> list[int]:
        """One number a layer; the file has one for all, or a list of as many or more."""
        value = self.keys.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, list):
            return [self.number(key)] * layers
        if len(value) < layers or not all(
            isinstance(v, int) and 0 <= v < 2**31 for v in value
        ):
            name = f"{self.header.arch}.{key}"
            raise GgufError(
                f"{self.header.path}: {name} is not a list of {layers} numbers; the file is damaged"
            )
        return value[:layers]


def _latent(read: _Numbers) -> Latent | None:
    if "attention.key_length_mla" not in read.keys:
        return None
    return Latent(
        rank=read.number("attention.kv_lora_rank"),
        rope=read.number("rope.dimension_count"),
        head=read.number("attention.key_length_mla"),
        value=read.number("attention.value_length_mla"),
    )


def _states(
    read: _Numbers, layers: int, width: int
) -> tuple[list[tuple[int, int]], list[bool]]:
    """Values that each layer keeps of a convolution and of a delta net or Mamba 2 (``n_embd_r``,
    ``n_embd_s``); and whether it attends."""
    arch = read.header.arch
    try:
        recurs = recurrent_layers(arch, read.keys, layers)
        attends = attending_layers(arch, read.keys, layers)
    except ValueError as error:
        raise GgufError(f"{read.header.path}: {error}; the file is damaged") from None
    if not any(recurs):
        return [(0, 0)] * layers, attends
    if arch in CONVOLUTIONS:
        size = ((read.number("shortconv.l_cache", least=2) - 1) * width, 0)
    else:
        state, inner = read.number("ssm.state_size"), read.number("ssm.inner_size")
        read.number("ssm.time_step_rank")  # which the graph is built with
        channels = inner + 2 * state * read.number("ssm.group_count")
        size = ((read.number("ssm.conv_kernel", least=2) - 1) * channels, state * inner)
    return [size if flag else (0, 0) for flag in recurs], attends


def _compressed(read: _Numbers, layers: int) -> tuple[list[int], int]:
    """Of each layer how many tokens become one; and the residual streams."""
    if read.header.arch not in COMPRESSED:
        return [0] * layers, 0
    for key in ("group_count", "lora_rank"):  # which the graph is built with
        read.number(f"attention.output_{key}")
    try:
        ratios = compress_ratios(read.keys, layers)
    except ValueError as error:
        raise GgufError(f"{read.header.path}: {error}") from None
    return ratios, read.number("hyper_connection.count", most=1 << 10)


def _indexed(
    read: _Numbers, layers: int, ratios: list[int], kv_heads: list[int]
) -> list[int]:
    """Values of the key of each layer's indexer."""
    if read.header.arch in IN_BLOCKS:
        return _in_blocks(read, layers, kv_heads)
    if read.header.arch not in (*INDEXED, *COMPRESSED):
        return [0] * layers
    for key in ("head_count", "top_k"):  # which the graph is built with
        read.number(f"attention.indexer.{key}")
    size = read.number("attention.indexer.key_length")
    if read.header.arch in COMPRESSED:
        return [size * (ratio == CHOSEN) for ratio in ratios]
    try:
        chooses = choosing_layers(read.header.arch, read.keys, layers)
    except ValueError as error:
        raise GgufError(f"{read.header.path}: {error}; the file is damaged") from None
    return [size * flag for flag in chooses]


def _in_blocks(read: _Numbers, layers: int, kv_heads: list[int]) -> list[int]:
    """The same where it chooses blocks, with a head for each of keys."""
    read.number("attention.indexer.top_k")
    size = read.number("attention.indexer.key_length")
    block = read.number("attention.indexer.block_size")
    if block & (block - 1):
        raise GgufError(
            f"{read.header.path}: attention.indexer.block_size is {block}, and not a power of two; "
            "the file is damaged"
        )
    dense = read.number("leading_dense_block_count", 0, least=0)
    heads = read.number("attention.indexer.head_count")
    if set(kv_heads[dense:]) - {heads}:
        raise GgufError(
            f"{read.header.path}: attention.indexer.head_count is {heads}, not that of the "
            "heads of keys; the file is damaged"
        )
    return [size * (i >= dense) for i in range(layers)]


def _window(read: _Numbers, layers: int) -> int:
    window = window_of(read.header.arch, read.keys, layers)
    return read.number(WINDOW, window, least=0) if window else 0


def _slides(read: _Numbers, layers: int) -> list[bool]:
    if read.header.arch in COMPRESSED:  # compressed tokens are in caches of their own
        return [True] * layers
    try:
        return sliding_layers(read.header.arch, read.keys, layers)
    except ValueError as error:
        raise GgufError(f"{read.header.path}: {error}; the file is damaged") from None


def _head_sizes(
    read: _Numbers, head: int, latent: Latent | None, slides: bool
) -> tuple[int, int]:
    if latent is not None:
        return latent.rank + latent.rope, 0
    key, value = (
        read.number(f"attention.{kind}_length", head) for kind in ("key", "value")
    )
    if read.header.arch in COMPRESSED:  # one head of keys that are the values too
        return key, 0
    if slides:
        key, value = (
            read.number(f"attention.{kind}_length_swa", size)
            for kind, size in (("key", key), ("value", value))
        )
    return key, value
