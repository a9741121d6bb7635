"""What llama.cpp asserts instead of refusing, refused first: an abort there kills the host program.

Two kinds of rules: those of `llama_cpp_facts.check`, which holds every tensor and hyperparameter of
the architectures that ggext writes or plans to what their loader and graph take for granted; and
the rules here, which hold for every architecture. These were found by loading, tokenizing and
decoding damaged files; the comments name the assertion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggext.errors import GgufError
from ggext.gguf.types import type_name
from ggext.llama_cpp_facts import check
from ggext.llama_cpp_facts.limits import (
    F32,
    LOOKUP,
    MATRIX_TYPES,
    MAX_EXPERTS,
    MAX_LAYERS,
)
from ggext.llama_cpp_facts.sliding import SLIDING, WINDOW, sliding_layers, window_of

if TYPE_CHECKING:
    from ggext.gguf.reader import GgufFile

_SCALING_TYPES = ("none", "linear", "yarn", "longrope")
_CHUNKED, _PERIOD = "llama4", 4
_BYTE = 6  # LLAMA_TOKEN_TYPE_BYTE


def refuse_what_aborts(header: GgufFile) -> None:
    """Raises GgufError for a file that would abort the process in llama.cpp."""
    for problem in _problems(header):
        raise GgufError(
            f"{header.path}: {problem}; llama.cpp would abort the program on this file"
        )


def refuse_unknown_experts(part: GgufFile, experts: int) -> None:
    """Raises GgufError for a table of one part of a model that names an expert which is not one of
    ``experts``."""
    for name in part.tensors:
        if LOOKUP not in name:
            continue
        chosen = part.tensor_data(name).cast("i").tolist()
        if chosen and not 0 <= min(chosen) <= max(chosen) < experts:  # i02 < n_as
            raise GgufError(
                f"{part.path}: tensor {name!r:.80} names the experts {min(chosen)} to "
                f"{max(chosen)}, and there are {experts}; llama.cpp would abort the program on "
                "this file"
            )


def _problems(header: GgufFile) -> Iterator[str]:
    keys = header.arch_keys()
    yield from _shape(keys)
    yield from _windows(header.arch, keys)
    yield from _experts(keys)
    yield from _tensors(header)
    yield from _vocabulary(header)
    tokens = header.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    model = str(header.get("tokenizer.ggml.model", "none"))
    yield from check.problems(header.arch, keys, header.tensors, count, model)


def _shape(keys: dict[str, Any]) -> Iterator[str]:
    layers = keys.get("block_count", 1)
    if (
        isinstance(layers, int) and not 0 < layers <= MAX_LAYERS
    ):  # n_layer_all > 0 && <= ...
        yield f"block_count is {layers}, not 1 to {MAX_LAYERS}"
    further = keys.get("nextn_predict_layers", 0)
    if isinstance(layers, int) and isinstance(further, int) and further > layers:
        # n_layer_nextn <= n_layer_all.
        yield f"nextn_predict_layers leave none of {layers} layers"
    for name, value in keys.items():
        if not (name.endswith("epsilon") and isinstance(value, float)):
            continue
        if not (value >= 0 and math.isfinite(value)):  # eps >= 0.0f
            yield f"{name} is {value}"
    scaling = keys.get("rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in _SCALING_TYPES:  # != ..._UNSPECIFIED
        yield f"rope.scaling.type is {scaling!r:.40}, not one of {', '.join(_SCALING_TYPES)}"


def _windows(arch: str, keys: dict[str, Any]) -> Iterator[str]:
    layers = keys.get("block_count", 1)
    if arch not in SLIDING or SLIDING[arch].by_ratio or not isinstance(layers, int):
        return
    if arch == _CHUNKED:
        if keys.get(WINDOW) == 0:  # f_attn_temp_scale != 0.0f
            yield f"{WINDOW} is 0"
        if layers < _PERIOD:  # tensor buffer not set
            yield (
                f"block_count is {layers}, and the architecture {arch} has {_PERIOD} layers or more"
            )
    try:
        slides = sliding_layers(arch, keys, layers)
    except ValueError:  # the loader refuses it
        return
    window = window_of(arch, keys, layers)
    if (window or SLIDING[arch].always) and not any(slides):  # is_swa_any()
        yield f"{WINDOW} is {window!r:.40}, and no layer has a window"


def _experts(keys: dict[str, Any]) -> Iterator[str]:
    experts = keys.get("expert_count", 0)
    used = keys.get("expert_used_count", 0)
    most = max(used, default=0) if isinstance(used, list) else used
    groups = keys.get("expert_group_count", 0)
    chosen = keys.get("expert_group_used_count", 0)
    if not all(isinstance(number, int) for number in (experts, most, groups, chosen)):
        return
    if experts > MAX_EXPERTS or most > experts or (experts > 0 and most == 0):
        yield f"{most} of {experts} experts are used"
    if groups > 0 and groups >= experts:
        yield f"{experts} experts are in {groups} groups"
    if groups > 1 and (experts % groups or not 0 < chosen < groups):
        yield f"{chosen} of {groups} groups of {experts} experts are used"


def _tensors(header: GgufFile) -> Iterator[str]:
    for name, info in header.tensors.items():
        if LOOKUP in name:
            continue
        if len(info.shape) == 1 and info.type != F32:  # binary_op: unsupported types
            yield f"the vector {name!r:.80} is not of type F32"
        elif info.type not in MATRIX_TYPES:  # a call of a null pointer
            yield f"tensor {name!r:.80} is of type {type_name(info.type)}, which no weight is"


def _vocabulary(header: GgufFile) -> Iterator[str]:
    tokens = header.get("tokenizer.ggml.tokens")
    model = header.get("tokenizer.ggml.model")
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {str}:
        return
    named = set(tokens)
    if "" in named or "\0" in "".join(tokens):  # llama.cpp reads them as C strings
        cut = (token.split("\0")[0] for token in tokens)
        named = {token or f"[EMPTY_{i}]" for i, token in enumerate(cut)}
    if len(named) != len(tokens):  # id_to_token.size() == token_to_id.size()
        yield f"{len(tokens) - len(named)} tokens occur twice in the vocabulary"
    if model == "gpt2" and header.get("tokenizer.ggml.pre") == "whitespace":
        # token_left.find(' ') == npos, for two spaces.
        yield "its pre-tokenizer is whitespace"
    kinds = header.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else []
    spelled = (t for t, k in zip(tokens, kinds, strict=False) if k == _BYTE)
    if any(0 < len(token) < 3 for token in spelled):
        yield "a byte token is not spelled <0xNN>"  # substr(3, 2) throws
    if model == "bert" and _BYTE in kinds:  # token_to_byte: fatal error
        yield "the tokenizer bert has byte tokens"
