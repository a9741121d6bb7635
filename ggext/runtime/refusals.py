"""What llama.cpp refuses in a header, by table: for where it is not installed, and for files whose
header is theirs already.

Read from ``llama-model.cpp`` and ``llama-vocab.cpp`` of the pinned llama.cpp; a test has the
installed library refuse each row.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggext.gguf.types import Field, ValueType

#: Keys under the architecture's prefix → the one type that they are read as. Those of ``_BY_LAYER``
#: may be an array of it.
_ARCH_KEYS = {
    **dict.fromkeys(
        (
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.sliding_window",
            "expert_count",
            "expert_used_count",
            "rope.dimension_count",
            "rope.scaling.original_context_length",
        ),
        ValueType.UINT32,
    ),
    **dict.fromkeys(
        (
            "attention.layer_norm_rms_epsilon",
            "attention.layer_norm_epsilon",
            "rope.freq_base",
            "rope.scaling.factor",
            "rope.scaling.attn_factor",
        ),
        ValueType.FLOAT32,
    ),
    "rope.scaling.type": ValueType.STRING,
}
_KEYS = {
    "general.name": ValueType.STRING,
    **{
        f"tokenizer.ggml.{role}_token_id": ValueType.UINT32
        for role in (
            "bos",
            "eos",
            "unknown",
            "padding",
            "seperator",
            "mask",
            "eot",
            "eom",
        )
    },
    **{
        f"tokenizer.ggml.{name}": ValueType.BOOL
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix")
    },
}
_ARRAYS = {
    "tokenizer.ggml.tokens": (ValueType.STRING,),
    "tokenizer.ggml.merges": (ValueType.STRING,),
    "tokenizer.ggml.scores": (ValueType.FLOAT32, ValueType.INT8),
    "tokenizer.ggml.token_type": (ValueType.INT32,),
}
#: What a model's name makes llama.cpp do: it looks these tokens up, whatever the model is.
_NAMES = ("phi-3", "phi3")
_LOOKED_UP = ("</s>", "<unk>", "<s>", "<|endoftext|>")


def refusal(fields: Mapping[str, Field]) -> str | None:
    """Why llama.cpp does not open a file with these keys, as far as the table knows."""
    arch = (
        fields["general.architecture"].value if "general.architecture" in fields else ""
    )
    expected = {f"{arch}.{key}": kind for key, kind in _ARCH_KEYS.items()} | _KEYS
    for key, kind in expected.items():
        field = fields.get(key)
        if field is None or field.type is kind or _is_by_layer(field, kind):
            continue
        return (
            f"the key {key} has the wrong type {field.type.name.lower()}, where llama.cpp reads "
            f"{kind.name.lower()}"
        )
    for key, kinds in _ARRAYS.items():
        field = fields.get(key)
        if field is not None and not (
            field.type is ValueType.ARRAY and field.item_type in kinds
        ):
            return f"the key {key} is no array of {kinds[0].name.lower()}"
    return _name_refusal(fields)


def _is_by_layer(field: Field, kind: ValueType) -> bool:
    """Whether it is an array of numbers, one a layer, which llama.cpp takes of some keys."""
    numbers = (kind, ValueType.INT32)
    return (
        kind is ValueType.UINT32
        and field.type is ValueType.ARRAY
        and field.item_type in numbers
    )


def _name_refusal(fields: Mapping[str, Field]) -> str | None:
    name, tokens = (
        fields.get(key) for key in ("general.name", "tokenizer.ggml.tokens")
    )
    if name is None or tokens is None or not names_another_behaviour(str(name.value)):
        return None
    present = set(tokens.value)
    missing = [token for token in _LOOKED_UP if token not in present]
    if not missing:
        return None
    return (
        f"general.name is {str(name.value)!r:.60}, and of a model so named llama.cpp looks up the "
        f"token {missing[0]}, which is not there; give it another name"
    )


def names_another_behaviour(name: str) -> bool:
    """Whether llama.cpp does something else for a model of this name."""
    return any(part in name.lower() for part in _NAMES)
