"""Holds a header to what its architecture's loader and graph take for granted.

One comparison covers the contradictions among head counts, head sizes, rotated dimensions, experts
and tensors: the expected shape of each tensor is computed from the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from ggext.llama_cpp_facts.architectures import (
    ARCHITECTURES,
    DELTA_NET,
    SHAPES,
    ArchitectureFacts,
)
from ggext.llama_cpp_facts.limits import (
    F32,
    MATRIX_TYPES,
    MAX_EXPERTS,
    MAX_LAYERS,
    NVFP4,
)
from ggext.llama_cpp_facts.recurrent import attending_layers, recurrent_layers
from ggext.llama_cpp_facts.sliding import SHARED_LAYERS, sliding_layers

_MOST = 2**31 - 1
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
        whole, sizes = _sizes(arch, facts, keys, vocabulary)
        recurs = recurrent_layers(arch, keys, whole.layers)
        attends = attending_layers(arch, keys, whole.layers)
    except ValueError as error:
        yield str(error)
        return
    yield from _values(facts, keys)
    yield from _tensors(facts, whole, sizes, recurs, tensors)
    yield from _mixers(facts, recurs, attends, tensors)


#: What an architecture's keys may list layer by layer, where its layers differ.
_LISTED = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def _sizes(
    arch: str, facts: ArchitectureFacts, keys: Mapping[str, Any], vocabulary: int
) -> tuple[Sizes, list[Sizes]]:
    """Those of a layer that attends to the whole text, and those of each layer. Raises
    ValueError."""
    if not facts.by_layer:
        sizes = Sizes.of(facts, keys, vocabulary)
        return sizes, [sizes] * sizes.layers
    layers = _Numbers(keys).number("block_count", most=MAX_LAYERS)
    slides = sliding_layers(arch, keys, layers)
    own = layers - _Numbers(keys).number(SHARED_LAYERS, 0, least=0)
    # what is shared is taken from the last two layers that have their own
    if own < 2 or (own < layers and slides[own - 2 : own] != [True, False]):
        raise ValueError(
            f"{SHARED_LAYERS} is {keys.get(SHARED_LAYERS)!r:.40} of {layers}"
        )
    if all(slides):
        raise ValueError("all layers slide")
    sizes_by_keys: dict[tuple[Any, ...], Sizes] = {}
    found = []
    for layer, slide in enumerate(slides):
        at = _at_layer(keys, layer, layers, slides=slide)
        mark = (slide, *(at.get(key) for key in _LISTED))
        if mark not in sizes_by_keys:
            sizes_by_keys[mark] = Sizes.of(facts, at, vocabulary)
        found.append(sizes_by_keys[mark])
    return found[slides.index(False)], found


def _at_layer(
    keys: Mapping[str, Any], layer: int, layers: int, *, slides: bool
) -> Mapping[str, Any]:
    """The keys as they would be where all layers were like this one."""
    at = dict(keys)
    for key in _LISTED:
        value = at.get(key)
        if isinstance(value, list):
            if len(value) != layers:
                raise ValueError(f"{key} has {len(value)} values for {layers} layers")
            at[key] = value[layer]
    for key in (
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ):
        own = at.pop(f"{key}_swa", None)
        if slides and own is not None:
            at[key] = own
    return at


@dataclass(frozen=True)
class Sizes:
    """The sizes that `architectures.SHAPES` speaks of, by name, and the number of layers."""

    layers: int
    values: Mapping[str, int]

    @classmethod
    def of(
        cls, facts: ArchitectureFacts, keys: Mapping[str, Any], vocabulary: int
    ) -> Sizes:
        """Raises ValueError where they contradict each other."""
        read = _Numbers(keys)
        layers = read.number("block_count", most=MAX_LAYERS)
        trunk = layers - read.number("nextn_predict_layers", 0, least=0)
        if trunk < 1:
            raise ValueError(f"nextn_predict_layers leave none of {layers} layers")
        values = {"embd": read.number("embedding_length"), "vocab": vocabulary or -1}
        values |= {"one": 1, "layers": trunk}
        values["each"] = read.number("embedding_length_per_layer_input", 0, least=0)
        if not vocabulary and "vocab_size" in keys:
            values["vocab"] = read.number("vocab_size")
        values["latent"] = read.number("moe_latent_size", 0, least=0) or values["embd"]
        values["context"] = read.number("context_length", 0, least=0) or -1
        if facts.mamba2 == "no":
            values["ff"] = read.first("feed_forward_length", layers, 0)
        else:  # where some layers have none
            values["ff"] = read.same("feed_forward_length", layers, skipped=0)
        values |= _heads(facts, read, layers, values["embd"])
        values |= _experts(facts, read, layers, values["ff"])
        return cls(trunk, values)

    def of_shape(self, shape: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self._sum(size) for size in shape)

    def _sum(self, size: str) -> int:
        total = 0
        for product in size.split("+"):
            value = 1
            for name in product.split("*"):
                value *= self.values[name]
            total += value
        return total


def _heads(
    facts: ArchitectureFacts, read: _Numbers, layers: int, width: int
) -> dict[str, int]:
    heads = read.same("attention.head_count", layers)
    own = _delta_net(read) if facts.delta_net != "no" else {}
    if facts.mamba2 != "no":
        own = _mamba2(facts, read, width)
        kv = read.same("attention.head_count_kv", layers, heads, skipped=0)
        conv = own["conv"]
    elif facts.convolutions:
        kv = read.same("attention.head_count_kv", layers, heads, skipped=0)
        conv = read.number("shortconv.l_cache", least=2)
    else:
        kv = read.same("attention.head_count_kv", layers, heads)
        conv = 0
    if heads % kv:
        raise ValueError(f"{heads} heads cannot share {kv} keys and values")
    key = read.number("attention.key_length", width // heads)
    value = read.number("attention.value_length", width // heads)
    rot = read.number("rope.dimension_count", key)
    for name, size in (
        ("attention.key_length", key),
        ("attention.value_length", value),
        ("rope.dimension_count", rot),
    ):
        if read.number(f"{name}_swa", size) != size:
            raise ValueError(f"{name}_swa is not {name}, {size}")
    result = {
        "heads": heads,
        "kv": kv,
        "key": key,
        "value": value,
        "rot": rot,
        "conv": conv,
    }
    result |= {"half_rot": rot // 2, "head_key": key, "head_value": value} | own
    if facts.latent != "no":
        return result | _latent(facts, read, result)
    if key != value:
        raise ValueError(
            f"attention.key_length is {key} and attention.value_length {value}"
        )
    _check_rotation(rot, key, whole=facts.rotates == "whole")
    return result


def _mamba2(facts: ArchitectureFacts, read: _Numbers, width: int) -> dict[str, int]:
    heads, groups = read.number("ssm.time_step_rank"), read.number("ssm.group_count")
    state, inner = read.number("ssm.state_size"), read.number("ssm.inner_size")
    if inner % heads or heads % groups:
        raise ValueError(
            f"ssm.inner_size is {inner} and ssm.time_step_rank {heads}, with {groups} groups"
        )
    if facts.mamba2 == "doubled" and inner != 2 * width:
        raise ValueError(f"ssm.inner_size is {inner}, not twice embedding_length")
    return {
        "conv": read.number("ssm.conv_kernel", least=2),
        "state": state,
        "inner": inner,
        "inner_heads": heads,
        "groups": groups,
        "inner_of_group": inner // groups,
        "channels": inner + 2 * groups * state,
    }


def _delta_net(read: _Numbers) -> dict[str, int]:
    state, keys = read.number("ssm.state_size"), read.number("ssm.group_count")
    values, inner = read.number("ssm.time_step_rank"), read.number("ssm.inner_size")
    if values % keys or inner != state * values:
        raise ValueError(
            f"ssm.inner_size is {inner} and ssm.time_step_rank {values}, with {keys} groups and a "
            f"state of {state}"
        )
    return {
        "conv": read.number("ssm.conv_kernel", least=2),
        "state": state,
        "inner": inner,
        "inner_heads": values,
        "channels": inner + 2 * keys * state,
    }


def _latent(
    facts: ArchitectureFacts, read: _Numbers, heads: Mapping[str, int]
) -> dict[str, int]:
    """Multi-head latent attention; the cache holds one row of all heads, or each head's own."""
    key, value, rot = heads["key"], heads["value"], heads["rot"]
    rank = read.number("attention.kv_lora_rank")
    head_key = read.number("attention.key_length_mla", 0, least=0)
    head_value = read.number("attention.value_length_mla", 0, least=0)
    if bool(head_key) != bool(head_value):
        raise ValueError(
            "of attention.key_length_mla and attention.value_length_mla one is there"
        )
    if head_key and facts.latent == "cached":
        if (heads["kv"], key, value) != (1, rank + rot, rank):
            raise ValueError(
                f"attention.head_count_kv, key_length and value_length are {heads['kv']}, {key} "
                f"and {value}, and not 1, {rank + rot} and {rank}"
            )
    else:
        head_key, head_value = key, value
        if heads["kv"] != heads["heads"]:
            raise ValueError(
                f"{heads['heads']} heads cannot share {heads['kv']} keys and values"
            )
    _check_rotation(rot, head_key - 1, whole=False)
    return {
        "rank": rank,
        "query_rank": read.number("attention.q_lora_rank", 0, least=0),
        "nope": head_key - rot,
        "head_key": head_key,
        "head_value": head_value,
    }


def _check_rotation(rot: int, most: int, *, whole: bool) -> None:
    if rot % 2 or rot > most or (whole and rot != most):
        limit = f"{most}" if whole else f"an even number up to {most}"
        raise ValueError(f"rope.dimension_count is {rot}, not {limit}")


def _experts(
    facts: ArchitectureFacts, read: _Numbers, layers: int, ff: int
) -> dict[str, int]:
    count = read.number("expert_count", 0, least=0, most=MAX_EXPERTS)
    if facts.experts == "never" or (not count and facts.experts == "some"):
        return {"experts": count, "expert_ff": ff, "shared_ff": ff}
    if not count:
        raise ValueError("expert_count is 0 in an architecture of experts")
    used = read.each("expert_used_count", layers)
    if not all(1 <= number <= count for number in used):
        raise ValueError(f"expert_used_count is {used!r:.40}, not 1 to {count}")
    if (
        max(used) > used[0]
    ):  # the graph chooses as many in every layer, and adds up the layer's own
        raise ValueError(
            f"expert_used_count is {used!r:.40}, more than the first layer's {used[0]}"
        )
    groups = read.number("expert_group_count", 0, least=0)
    if groups > 1 and count // groups < 2:  # the two best of each group are added
        raise ValueError(f"{count} experts are in {groups} groups")
    own = 0
    if facts.expert_rows != "ff":
        own = read.first("expert_feed_forward_length", layers, 0)
        if not own and facts.expert_rows == "or_share":
            own = ff // used[0]
    rows = ff if facts.expert_rows == "ff" else own
    shared = read.number("expert_shared_feed_forward_length", 0, least=0)
    if facts.shared_rows == "or_ff":
        shared = shared or ff
    elif facts.shared_rows == "counted":
        shared = rows * read.number("expert_shared_count", 0, least=0)
    elif facts.shared_rows == "as_expert":
        shared = rows
    return {"experts": count, "expert_ff": rows, "shared_ff": shared}


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
        isinstance(size, int) and 0 <= size <= _MOST for size in sections
    )
    rot = keys.get("rope.dimension_count", _MOST)
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
        if expected is not None and _squeezed(tensor.shape) != _squeezed(expected):
            yield (
                f"tensor {name!r:.80} has the shape {list(tensor.shape)}, and the keys want "
                f"{list(expected)}"
            )
        if name.endswith((".ssm_a", ".ssm_d", ".scale")) or any(
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
) -> tuple[int, ...] | None:
    """None: the table does not know the tensor, or not the numbers that it is made of."""
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
    expected = of_name.of_shape(shape)
    if kind == "bias" and len(expected) > 1:
        expected = expected[1:]
    return None if any(size < 0 for size in expected) else expected


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
        for wanted in (recurrent if recurring else (), attention if attending else ()):
            if wanted and not any(
                all(f"blk.{layer}.{_with_kind(name)}" in tensors for name in names)
                for names in wanted
            ):
                yield f"layer {layer} has no {', '.join(wanted[-1])}"


def _with_kind(name: str) -> str:
    return name if name.endswith(".bias") else f"{name}.weight"


class _Numbers:
    """An architecture's keys, held to whole numbers in bounds. All raise ValueError."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys

    def number(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST
    ) -> int:
        return self._checked(key, self.keys.get(key, default), least, most)

    def each(self, key: str, layers: int, default: int | None = None) -> list[int]:
        """One number a layer; the file has one for all, or a list."""
        value = self.keys.get(key, default)
        if not isinstance(value, list):
            return [self._checked(key, value, 0, _MOST)] * layers
        if len(value) != layers:
            raise ValueError(f"{key} has {len(value)} values for {layers} layers")
        return [self._checked(key, item, 0, _MOST) for item in value]

    def first(self, key: str, layers: int, default: int) -> int:
        """The first layer's number, which llama.cpp's loaders make all layers' tensors by."""
        return self.each(key, layers, default)[0]

    def same(
        self, key: str, layers: int, default: int | None = None, *, skipped: int = -1
    ) -> int:
        """A number of at least 1 that all layers have, but for those with the ``skipped`` one."""
        values = {
            value for value in self.each(key, layers, default) if value != skipped
        }
        if len(values) != 1 or 0 in values:
            raise ValueError(
                f"{key} is {self.keys.get(key)!r:.40}, not one number for all layers"
            )
        return values.pop()

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not least <= value <= most
        ):
            raise ValueError(
                f"{key} is {value!r:.40}, not a number of {least} to {most}"
            )
        return value
