"""Holds a header to what its architecture's loader and graph take for granted.

One comparison covers the contradictions among head counts, head sizes, rotated dimensions, experts
and tensors: the expected shape of each tensor is computed from the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Protocol

from ggext.llama_cpp_facts.architectures import (
    ARCHITECTURES,
    DELTA_NET,
    SHAPES,
    ArchitectureFacts,
)
from ggext.llama_cpp_facts.indexer import choosing_layers
from ggext.llama_cpp_facts.key_numbers import MOST
from ggext.llama_cpp_facts.limits import (
    F32,
    I32,
    LOOKUP,
    MATRIX_TYPES,
    NVFP4,
)
from ggext.llama_cpp_facts.recurrent import attending_layers, recurrent_layers
from ggext.llama_cpp_facts.sizes import Sizes, sizes_of

#: Parts of the names of what is added, normed by or rotated with; ggml's kernels want float32.
_FLOAT32_PARTS = (
    ".bias",
    "norm",
    "sinks",
    "rope_f",
    "shortconv.conv",
    "ssm_conv1d",
    "exp_probs_b",
)
#: Tokenizers of models that continue text; the graph of the others is not this table's.
_TOKENIZERS = ("llama", "gpt2", "gemma4", "none", "no_vocab")


class Tensor(Protocol):
    """What a header says of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> int: ...


def problems(
    arch: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    vocabulary: int,
    model: str,
) -> Iterator[str]:
    """What is wrong with a file of an architecture of the table; nothing for one outside of it.

    ``keys``: the architecture's own, without its prefix. ``vocabulary``: tokens in the file,
    ``model``: its ``tokenizer.ggml.model``.
    """
    facts = ARCHITECTURES.get(arch)
    if facts is None:
        return
    if model not in _TOKENIZERS:
        yield f"tokenizer.ggml.model is {model!r:.40}, which no model of {arch} has"
    try:
        whole, sizes = sizes_of(arch, facts, keys, vocabulary)
        recurs = recurrent_layers(arch, keys, whole.layers)
        attends = attending_layers(arch, keys, whole.layers)
    except ValueError as error:
        yield str(error)
        return
    yield from _values(facts, keys)
    yield from _tensors(facts, whole, sizes, recurs, tensors)
    yield from _mixers(facts, recurs, attends, tensors)
    if facts.optional_feed_forward:
        yield from _feed_forward(whole.layers, tensors)
    if facts.indexer == "tokens":
        yield from _indexers(arch, keys, whole.layers, tensors)


def _values(facts: ArchitectureFacts, keys: Mapping[str, Any]) -> Iterator[str]:
    if facts.gating:
        gating = keys.get("expert_gating_func", 0)
        if gating not in facts.gating:
            yield f"expert_gating_func is {gating!r:.40}, not one of {facts.gating}"
    for name in facts.positive:
        value = keys.get(name)
        if not isinstance(value, int) or value < 1:
            yield f"{name} is {value!r:.40}"
    if keys.get("attention.causal") is False:
        yield "attention.causal is false, so it is not a model that continues text"
    scale = keys.get("attention.temperature_scale", 0.0)
    length = keys.get("attention.temperature_length", 0)
    if facts.latent == "cached" and scale and not length:
        yield f"attention.temperature_scale is {scale!r:.40} without a temperature_length"
    if isinstance(scale, float) and not isfinite(scale):
        yield f"attention.temperature_scale is {scale}"
    mapping = keys.get("deepstack_mapping", [])
    if not isinstance(mapping, list) or any(entry != -1 for entry in mapping):
        yield "deepstack_mapping is that of a model of images"
    stacked = keys.get("n_deepstack_layers", 0)
    # to the last layer's rows, of which only those are left whose logits are wanted, all are added
    if not isinstance(stacked, int) or not 0 <= stacked < keys["block_count"]:
        yield f"n_deepstack_layers is {stacked!r:.40} of {keys['block_count']} layers"
    yield from _sections(facts, keys)


def _sections(facts: ArchitectureFacts, keys: Mapping[str, Any]) -> Iterator[str]:
    sections = keys.get("rope.dimension_sections", [])
    whole = isinstance(sections, list) and all(
        isinstance(size, int) and 0 <= size <= MOST for size in sections
    )
    rot = keys.get("rope.dimension_count", MOST)
    if facts.sections == "must" or (facts.sections == "may" and sections):
        if not whole or not any(sections[:3]) or not 0 < sum(sections) <= rot:
            yield f"rope.dimension_sections are {sections!r:.40}"
    elif not whole or any(sections):
        yield f"rope.dimension_sections are {sections!r:.40}, and this is no model of images"


def _tensors(
    facts: ArchitectureFacts,
    whole: Sizes,
    sizes: list[Sizes],
    recurs: list[bool],
    tensors: Mapping[str, Tensor],
) -> Iterator[str]:
    for name, tensor in tensors.items():
        expected = _expected(facts, whole, sizes, recurs, name)
        shape = _squeezed(tensor.shape)
        if expected is not None and shape not in map(_squeezed, expected):
            yield (
                f"tensor {name!r:.80} has the shape {list(tensor.shape)}, and the keys want "
                f"{' or '.join(str(list(one)) for one in expected)}"
            )
        if LOOKUP in name:
            if tensor.type != I32:
                yield f"tensor {name!r:.80} is not of type I32"
        elif name.endswith((".ssm_a", ".ssm_d", ".scale")) or any(
            part in name for part in _FLOAT32_PARTS
        ):
            if tensor.type != F32:
                yield f"tensor {name!r:.80} is not of type F32"
        elif len(tensor.shape) > 1 and tensor.type not in MATRIX_TYPES:
            yield f"tensor {name!r:.80} is of type {tensor.type}, which no matrix has"
        base = name.removesuffix(".weight")
        if tensor.type == NVFP4 and {f"{base}.scale", f"{base}.bias"} <= tensors.keys():
            yield f"tensor {name!r:.80} is of type NVFP4 and has a scale and a bias"


def _expected(
    facts: ArchitectureFacts,
    of_name: Sizes,
    sizes: list[Sizes],
    recurs: list[bool],
    name: str,
) -> list[tuple[int, ...]] | None:
    """The shapes that are right; ``None``: the table does not know the tensor, or not the numbers
    that it is made of."""
    stem, _, kind = name.rpartition(".")
    if kind in ("ssm_a", "ssm_d"):  # which have neither a weight nor a bias
        stem = name
    elif kind not in ("weight", "bias"):
        return None
    shapes = facts.shapes
    if stem.startswith("blk."):
        layer, _, stem = stem.removeprefix("blk.").partition(".")
        if not layer.isdecimal() or int(layer) >= len(sizes):
            return None  # of layers that predict further tokens, which are not run
        of_name = sizes[int(layer)]
        if facts.delta_net != "no" and recurs[int(layer)]:
            shapes = DELTA_NET
    shape = shapes.get(stem, SHAPES.get(stem))
    if shape is None:
        return None
    accepted = []
    for one in (shape, facts.also.get(stem)):
        expected = of_name.of_shape(one) if one is not None else ()
        if kind == "bias" and len(expected) > 1:
            expected = expected[1:]
        if any(size < 0 for size in expected):
            return None
        accepted += [expected] if expected else []
    return accepted


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _mixers(
    facts: ArchitectureFacts,
    recurs: list[bool],
    attends: list[bool],
    tensors: Mapping[str, Tensor],
) -> Iterator[str]:
    """Loaders that take these tensors for optional read a null pointer where they are not there."""
    attention: tuple[tuple[str, ...], ...] = (
        ("attn_qkv",),
        ("attn_q", "attn_k", "attn_v"),
    )
    if facts.latent != "no":
        attention = (("attn_kv_a_mqa",),)
    if facts.compressed:
        attention = (("attn_kv",),)
    if facts.by_layer:  # the loader asks for keys; values may be the keys
        attention = (("attn_qkv",), ("attn_q",))
    recurrent: tuple[tuple[str, ...], ...] = ()
    if facts.delta_net != "no":
        recurrent = (("attn_qkv", "attn_gate"),)
    if facts.delta_net == "fused":
        recurrent = (("ssm_in",), *recurrent)
    if facts.mamba2 != "no":
        recurrent = (("ssm_conv1d.bias",),)
    for layer, (recurring, attending) in enumerate(zip(recurs, attends, strict=True)):
        for needed in (recurrent if recurring else (), attention if attending else ()):
            if needed and not any(
                all(f"blk.{layer}.{_with_kind(name)}" in tensors for name in names)
                for names in needed
            ):
                yield f"layer {layer} has no {', '.join(needed[-1])}"


_WIDE = ("gate", "up", "down")


def _feed_forward(layers: int, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The graph takes a layer with a router for one of experts, and reads what is not there."""
    for layer in range(layers):
        start = f"blk.{layer}.ffn_"
        kinds = [""]
        if f"{start}gate_inp.weight" in tensors:
            kinds = ["_exps", "_shexp"]
        needed = [f"{start}{name}{kind}.weight" for kind in kinds for name in _WIDE]
        both = f"{start}gate_up_exps.weight"
        if both in tensors:
            needed = [both, *(name for name in needed if "_exps" not in name)]
            needed.append(f"{start}down_exps.weight")
        for name in needed:
            if name not in tensors:
                yield f"layer {layer} has no {name.removeprefix(f'blk.{layer}.')}"


_OF_INDEXER = tuple(
    "k_norm.weight k_norm.bias proj.weight attn_k.weight attn_q_b.weight".split()
)


def _indexers(
    arch: str, keys: Mapping[str, Any], layers: int, tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """The loader of glm-dsa asks for none of these, and its first layer may have to choose."""
    try:
        chooses = choosing_layers(arch, keys, layers)
    except ValueError as error:
        yield str(error)
        return
    for layer, flag in enumerate(chooses):
        for name in _OF_INDEXER if flag else ():
            if f"blk.{layer}.indexer.{name}" not in tensors:
                yield f"layer {layer} has no indexer.{name}"


def _with_kind(name: str) -> str:
    return name if name.endswith(".bias") else f"{name}.weight"
