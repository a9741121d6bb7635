"""The sizes that an architecture's keys imply, layer by layer, held to what its loader takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggext.llama_cpp_facts.architectures import (
    ArchitectureFacts,
)
from ggext.llama_cpp_facts.compressed import ALL, CHOSEN, compress_ratios
from ggext.llama_cpp_facts.key_numbers import Numbers
from ggext.llama_cpp_facts.limits import (
    MAX_EXPERTS,
    MAX_LAYERS,
)
from ggext.llama_cpp_facts.sliding import (
    SHARED_LAYERS,
    WINDOW,
    layers_with_windows,
)

_STREAMS = 4  # of a residual, as the graph asserts


_ROTATED = "rope.dimension_count"
#: What an architecture's keys may list layer by layer, where its layers differ.
_LISTED = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def sizes_of(
    arch: str, facts: ArchitectureFacts, keys: Mapping[str, Any], vocabulary: int
) -> tuple[Sizes, list[Sizes]]:
    """Those of a layer that attends to the whole text, and those of each layer. Raises
    ValueError."""
    if not facts.by_layer:
        sizes = Sizes.of(facts, keys, vocabulary)
        return sizes, [sizes] * sizes.layers
    layers = Numbers(keys).number("block_count", most=MAX_LAYERS)
    slides = layers_with_windows(arch, keys, layers)
    own = layers - Numbers(keys).number(SHARED_LAYERS, 0, least=0)
    # what is shared is taken from the last two layers that have their own
    if own < layers and (own < 2 or slides[own - 2 : own] != [True, False]):
        raise ValueError(
            f"{SHARED_LAYERS} is {keys.get(SHARED_LAYERS)!r:.40} of {layers}"
        )
    sizes_by_keys: dict[tuple[Any, ...], Sizes] = {}
    of_layers = []
    for layer, slide in enumerate(slides):
        at = _at_layer(facts, keys, layer, layers, slides=slide)
        mark = (slide, *(at.get(key) for key in _LISTED))
        if mark not in sizes_by_keys:
            sizes_by_keys[mark] = Sizes.of(facts, at, vocabulary)
        of_layers.append(sizes_by_keys[mark])
    return of_layers[0 if all(slides) else slides.index(False)], of_layers


def _at_layer(
    facts: ArchitectureFacts,
    keys: Mapping[str, Any],
    layer: int,
    layers: int,
    *,
    slides: bool,
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
    if facts.halves_rotated:
        read = Numbers(keys)
        rotated = read.number(_ROTATED, keys.get("attention.key_length"))
        own = read.number(f"{_ROTATED}_swa", rotated)
        at[_ROTATED] = own if slides else rotated // 2
        at["most_rotated"] = max(own, rotated // 2)
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
        read = Numbers(keys)
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
    facts: ArchitectureFacts, read: Numbers, layers: int, width: int
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
    result["most_half_rot"] = read.number("most_rotated", rot) // 2
    result |= {"half_rot": rot // 2, "head_key": key, "head_value": value} | own
    if facts.latent != "no":
        return result | _latent(facts, read, result)
    if facts.compressed:
        result |= _compressed(read, result, layers)
    if key != value and not facts.own_values:
        raise ValueError(
            f"attention.key_length is {key} and attention.value_length {value}"
        )
    _check_rotation(rot, key, whole=facts.rotates == "whole")
    if facts.indexer == "blocks":
        result |= _chosen_blocks(read, kv, rot)
    return result


def _compressed(read: Numbers, heads: Mapping[str, int], layers: int) -> dict[str, int]:
    """Keys of one head, compressed ones too, and several residual streams (``deepseek4``)."""
    read.number(WINDOW)
    trunk = layers - read.number("nextn_predict_layers", 0, least=0)
    compress_ratios(read.keys, max(trunk, 1))
    groups = read.number("attention.output_group_count")
    streams = read.number("hyper_connection.count")
    if heads["kv"] != 1 or heads["heads"] % groups or streams != _STREAMS:
        raise ValueError(
            f"{heads['kv']} heads of keys, {heads['heads']} heads in {groups} groups and "
            f"{streams} residual streams, and not 1, whole groups and {_STREAMS}"
        )
    return _indexer(read, heads["rot"]) | {
        "query_rank": read.number("attention.q_lora_rank"),
        "out_groups": groups,
        "grouped": heads["heads"] // groups,
        "out_rank": read.number("attention.output_lora_rank"),
        "streams": streams,
        "mixed": (2 + streams) * streams,
        "three": 3,
        "chosen": CHOSEN,
        "all_tokens": ALL,
    }


def _mamba2(facts: ArchitectureFacts, read: Numbers, width: int) -> dict[str, int]:
    heads = read.number("ssm.time_step_rank")
    groups = read.number("ssm.group_count")
    state = read.number("ssm.state_size")
    inner = read.number("ssm.inner_size")
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


def _delta_net(read: Numbers) -> dict[str, int]:
    state = read.number("ssm.state_size")
    keys = read.number("ssm.group_count")
    values = read.number("ssm.time_step_rank")
    inner = read.number("ssm.inner_size")
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
    facts: ArchitectureFacts, read: Numbers, heads: Mapping[str, int]
) -> dict[str, int]:
    """Multi-head latent attention; the cache holds one row of all heads, or each head's own."""
    key = heads["key"]
    value = heads["value"]
    rot = heads["rot"]
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
        head_key = key
        head_value = value
        if heads["kv"] != heads["heads"]:
            raise ValueError(
                f"{heads['heads']} heads cannot share {heads['kv']} keys and values"
            )
    _check_rotation(rot, head_key - 1, whole=False)
    chosen = _indexer(read, rot) if facts.indexer == "tokens" else {}
    return chosen | {
        "rank": rank,
        "query_rank": read.number("attention.q_lora_rank", 0, least=0),
        "nope": head_key - rot,
        "head_key": head_key,
        "head_value": head_value,
    }


def _indexer(read: Numbers, rot: int) -> dict[str, int]:
    """What chooses tokens; its keys are turned by a Hadamard matrix as large as a head."""
    size = read.number("attention.indexer.key_length", least=max(64, rot))
    if size & (size - 1):
        raise ValueError(
            f"attention.indexer.key_length is {size}, and not a power of two"
        )
    read.number("attention.indexer.top_k")
    read.number("attention.q_lora_rank")
    return {"index": size, "index_heads": read.number("attention.indexer.head_count")}


def _chosen_blocks(read: Numbers, kv: int, rot: int) -> dict[str, int]:
    """What chooses blocks of tokens, a head for each of keys (``models/minimax-m3.cpp``)."""
    heads = read.number("attention.indexer.head_count")
    if heads != kv:
        raise ValueError(
            f"attention.indexer.head_count is {heads}, and attention.head_count_kv {kv}"
        )
    block = read.number("attention.indexer.block_size")
    if block & (block - 1):  # positions are padded to it by GGML_PAD
        raise ValueError(
            f"attention.indexer.block_size is {block}, and not a power of two"
        )
    read.number("attention.indexer.top_k")
    read.number("attention.indexer.local_blocks", least=0)
    size = read.number("attention.indexer.key_length", least=rot)
    return {"index": size, "index_heads": heads}


def _check_rotation(rot: int, most: int, *, whole: bool) -> None:
    if rot % 2 or rot > most or (whole and rot != most):
        limit = f"{most}" if whole else f"an even number up to {most}"
        raise ValueError(f"rope.dimension_count is {rot}, not {limit}")


def _experts(
    facts: ArchitectureFacts, read: Numbers, layers: int, ff: int
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
    return {"experts": count, "used": used[0], "expert_ff": rows, "shared_ff": shared}
