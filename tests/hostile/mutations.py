"""Valid-looking GGUF files with something wrong: mutations of a model's keys, tensors and vocabulary.

Each mutation draws what it changes from a `random.Random`, so that a seed stands for a file. The
names come from the gguf library's tables, so that keys and tensors of all architectures are tried on
each.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tiny_gguf import type_of

from ggext.errors import GgufError
from ggext.gguf.header import pack_header, packed_length, roomy_length
from ggext.gguf.types import Field, TensorInfo, ValueType, aligned, tensor_nbytes
from ggext.llama_cpp_facts.splitters import BY_HAND, BY_REGEX

_ALIGNMENT = 32
_NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        15,
        16,
        17,
        31,
        32,
        33,
        48,
        63,
        64,
        65,
        96,
        127,
        128,
        255,
        256,
        257,
    ),
    *(
        511,
        512,
        513,
        1023,
        1024,
        1025,
        4096,
        65535,
        65536,
        10**6,
        2**24,
        2**31 - 1,
        2**31,
        2**32 - 1,
    ),
)
_SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, -1, 2**31 - 1)
_REALS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-30, 1e30, -1e30, 3.4e38),
    *(math.inf, -math.inf, math.nan),
)
_TEXTS = (
    "",
    "x",
    "none",
    "linear",
    "yarn",
    "longrope",
    "\udcff",
    "%s%n",
    "x" * 100_000,
)
_TYPES = (*range(4), *range(6, 24), 24, 25, 26, 27, 28, 29, 30, 34, 35, 39, 40, 41, 42)
_PRE_TOKENIZERS = sorted(BY_HAND | BY_REGEX)
_MODELS = (
    "none",
    "no_vocab",
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "plamo2",
    "gemma4",
    "x",
)


@dataclass(frozen=True)
class Draft:
    """A file to be: its fields, and its tensors by name."""

    arch: str
    fields: dict[str, Field]
    tensors: dict[str, TensorDraft]

    def copy(self) -> Draft:
        return Draft(self.arch, dict(self.fields), dict(self.tensors))


@dataclass(frozen=True)
class TensorDraft:
    """``shape``: the contiguous dimension first. ``data``: repeated or cut to the bytes needed."""

    shape: tuple[int, ...]
    type: int
    data: bytes


def draft_of(
    arch: str, fields: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]
) -> Draft:
    tensors = {
        name: TensorDraft(array.shape[::-1], type_of(array), array.tobytes())
        for name, array in arrays.items()
    }
    return Draft(arch, {key: Field.of(value) for key, value in fields.items()}, tensors)


def write(path: Path, draft: Draft) -> None:
    """Raises GgufError or ValueError for what no file can say."""
    infos, offset = [], 0
    for name, tensor in draft.tensors.items():
        nbytes = tensor_nbytes(name, tensor.shape, tensor.type)
        if nbytes > 1 << 24:
            raise ValueError(f"{name} would have {nbytes} bytes")
        infos.append(TensorInfo(name, tensor.shape, tensor.type, offset, nbytes))
        offset = aligned(offset + nbytes, _ALIGNMENT)
    start = roomy_length(packed_length(draft.fields, infos), _ALIGNMENT)
    with path.open("wb") as file:
        file.write(pack_header(draft.fields, infos, start))
        for info, tensor in zip(infos, draft.tensors.values(), strict=True):
            data = tensor.data * (1 + info.nbytes // max(1, len(tensor.data)))
            file.write(
                data[: info.nbytes].ljust(aligned(info.nbytes, _ALIGNMENT), b"\0")
            )


Draw = random.Random
Mutation = Callable[[Draft, Draw], str]


@cache
def _known_keys() -> tuple[str, ...]:
    """Keys of any architecture, as the gguf library names them."""
    from gguf.constants import Keys

    names = {
        value
        for group in vars(Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str) and value.startswith("{arch}.")
    }
    return tuple(sorted(name.removeprefix("{arch}.") for name in names))


@cache
def _known_tensors() -> tuple[str, ...]:
    from gguf.constants import TENSOR_NAMES

    return tuple(sorted({name.replace("{bid}", "0") for name in TENSOR_NAMES.values()}))


@cache
def _known_architectures() -> tuple[str, ...]:
    from gguf.constants import MODEL_ARCH_NAMES

    return tuple(sorted(set(MODEL_ARCH_NAMES.values())))


def _layers(draft: Draft) -> int:
    value = draft.fields[f"{draft.arch}.block_count"].value
    return value if isinstance(value, int) and 0 < value < 600 else 2


def _own_key(draft: Draft, draw: Draw, *types: ValueType) -> str:
    keys = [
        key
        for key, field in draft.fields.items()
        if key.startswith(f"{draft.arch}.") and (not types or field.type in types)
    ]
    return draw.choice(keys)


def _near(draw: Draw, value: Any) -> int:
    """A number as it might be by mistake, or any."""
    if isinstance(value, int) and 0 < value < 2**30 and draw.random() < 0.5:
        return draw.choice(
            (value + 1, value - 1, 2 * value, value // 2, value + 2, 3 * value)
        )
    return draw.choice(_NUMBERS)


def number(draft: Draft, draw: Draw) -> str:
    key = _own_key(draft, draw, ValueType.UINT32, ValueType.INT32, ValueType.UINT64)
    value = _near(draw, draft.fields[key].value)
    draft.fields[key] = Field(ValueType.UINT32, value)
    return f"{key}={value}"


def number_by_layer(draft: Draft, draw: Draw) -> str:
    key = _own_key(draft, draw, ValueType.UINT32, ValueType.INT32, ValueType.ARRAY)
    was, layers, value = draft.fields[key].value, _layers(draft), draw.choice(_SMALL)
    usual = was if isinstance(was, int) and was < 2**31 else 1
    usual = (
        was[0] if isinstance(was, list) and was and isinstance(was[0], int) else usual
    )
    values = draw.choice(
        (
            [value] * layers,
            [usual] * (layers - 1) + [value],
            [value] + [usual] * (layers - 1),
            [usual] * layers,
            [],
            [1],
            [1] * 600,
        )
    )
    draft.fields[key] = Field(ValueType.ARRAY, values, ValueType.INT32)
    return f"{key}={values if len(values) < 9 else len(values)}"


def real(draft: Draft, draw: Draw) -> str:
    key, value = _own_key(draft, draw, ValueType.FLOAT32), draw.choice(_REALS)
    draft.fields[key] = Field(ValueType.FLOAT32, value)
    return f"{key}={value}"


def missing_key(draft: Draft, draw: Draw) -> str:
    key = _own_key(draft, draw)
    del draft.fields[key]
    return f"-{key}"


def retyped_key(draft: Draft, draw: Draw) -> str:
    key = _own_key(draft, draw)
    field = draw.choice(
        (
            Field(ValueType.STRING, draw.choice(_TEXTS)),
            Field(ValueType.INT32, -1),
            Field(ValueType.BOOL, draw.random() < 0.5),
            Field(ValueType.FLOAT32, draw.choice(_REALS)),
            Field(ValueType.ARRAY, [True] * _layers(draft), ValueType.BOOL),
            Field(
                ValueType.ARRAY,
                [draw.choice(_REALS)] * _layers(draft),
                ValueType.FLOAT32,
            ),
        )
    )
    draft.fields[key] = field
    return f"{key}={field.value!r:.40}"


def further_key(draft: Draft, draw: Draw) -> str:
    """A key that some architecture reads."""
    name, layers = draw.choice(_known_keys()), _layers(draft)
    kind = draw.randrange(6)
    if kind < 3:
        field = Field(ValueType.UINT32, draw.choice(_NUMBERS))
    elif kind == 3:
        field = Field(ValueType.FLOAT32, draw.choice(_REALS))
    elif kind == 4:
        field = Field(ValueType.BOOL, draw.random() < 0.5)
    else:
        field = Field(ValueType.ARRAY, [draw.choice(_SMALL)] * layers, ValueType.INT32)
    draft.fields[f"{draft.arch}.{name}"] = field
    return f"+{name}={field.value!r:.40}"


def scaling(draft: Draft, draw: Draw) -> str:
    values = {
        "rope.scaling.type": draw.choice(("none", "linear", "yarn", "longrope", "x")),
        "rope.scaling.factor": draw.choice((*_REALS, 4.0)),
        "rope.scaling.original_context_length": draw.choice(
            (0, 1, 64, 2**31 - 1, 2**32 - 1)
        ),
        "rope.scaling.attn_factor": draw.choice((1.0, 1.0, *_REALS)),
    }
    draft.fields.update(
        {f"{draft.arch}.{key}": Field.of(value) for key, value in values.items()}
    )
    return f"scaling {list(values.values())}"


def sections(draft: Draft, draw: Draw) -> str:
    values = [
        draw.choice((0, 1, 4, 8, 16, 1000, -1, 2**31 - 1))
        for _ in range(draw.choice((3, 4)))
    ]
    key = f"{draft.arch}.rope.dimension_sections"
    draft.fields[key] = Field(ValueType.ARRAY, values, ValueType.INT32)
    return f"sections {values}"


def tensor_type(draft: Draft, draw: Draw) -> str:
    name = draw.choice(list(draft.tensors))
    tensor, kind = draft.tensors[name], draw.choice(_TYPES)
    draft.tensors[name] = replace(tensor, type=kind)
    return f"{name} type {kind}"


def quantized(draft: Draft, draw: Draw) -> str:
    """All matrices whose rows are whole blocks of a type, of that type, with any bytes or zeros."""
    kind, made = draw.choice(_TYPES), 0
    data = draw.choice((draw.randbytes(1 << 12), bytes(64)))
    for name, tensor in draft.tensors.items():
        if len(tensor.shape) > 1:
            with contextlib.suppress(GgufError):
                tensor_nbytes(name, tensor.shape, kind)
                draft.tensors[name] = replace(tensor, type=kind, data=data)
                made += 1
    return f"{made} matrices of type {kind}"


def tensor_shape(draft: Draft, draw: Draw) -> str:
    name = draw.choice(list(draft.tensors))
    tensor = draft.tensors[name]
    first, *others = tensor.shape
    shape = draw.choice(
        (
            tensor.shape[::-1],
            (max(1, first // 2), *others),
            (2 * first, *others),
            (1,),
            (math.prod(tensor.shape),),
            (*tensor.shape[:-1], tensor.shape[-1] + 1),
            (*tensor.shape[:-1], max(1, tensor.shape[-1] - 1)),
            (*tensor.shape, 1, 1, 1)[:4],
            (*tensor.shape, 2)[:4],
        )
    )
    draft.tensors[name] = replace(tensor, shape=shape)
    return f"{name} shape {shape}"


def missing_tensor(draft: Draft, draw: Draw) -> str:
    name = draw.choice(list(draft.tensors))
    del draft.tensors[name]
    return f"-{name}"


def further_tensor(draft: Draft, draw: Draw) -> str:
    width = draft.tensors.get("output_norm.weight", TensorDraft((64,), 0, b"")).shape[0]
    name = draw.choice(_known_tensors()) + draw.choice(
        (".weight", ".weight", ".bias", ".scale")
    )
    shape = draw.choice(
        ((1,), (4,), (8,), (width,), (width, width), (width, 1), (7,), (100_000,))
    )
    value = draw.choice((1.0, 0.0, math.nan))
    draft.tensors[name] = TensorDraft(shape, 0, np.full(64, value, "<f4").tobytes())
    return f"+{name}{shape}"


def tensor_values(draft: Draft, draw: Draw) -> str:
    name, value = draw.choice(list(draft.tensors)), draw.choice(_REALS)
    draft.tensors[name] = replace(
        draft.tensors[name], data=np.full(64, value, "<f4").tobytes()
    )
    return f"{name} values {value}"


def vocabulary(draft: Draft, draw: Draw) -> str:
    tokens = draft.fields["tokenizer.ggml.tokens"].value
    count = len(tokens)
    label, values = draw.choice(
        (
            ("half", tokens[: count // 2]),
            ("one less", tokens[:-1]),
            ("more", [*tokens, "zz1", "zz2"]),
            ("many more", [*tokens, *(f"zz{i}" for i in range(5000))]),
            ("none", []),
            ("blank", ["", *tokens[1:]]),
            ("huge", [*tokens[:-1], "A" * 2_000_000]),
            ("NUL", [*tokens[:-1], f"{tokens[0]}\0b"]),
            ("not UTF-8", [*tokens[:-1], "\udcff\udcfe"]),
            ("cut UTF-8", [*tokens[:-1], "\udce2\udc96"]),
            ("reversed", tokens[::-1]),
            ("specials", [f"<|{i}|>" for i in range(count)]),
            ("twice", [*tokens[:-1], tokens[0]]),
        )
    )
    draft.fields["tokenizer.ggml.tokens"] = Field(
        ValueType.ARRAY, values, ValueType.STRING
    )
    if draw.random() < 0.5:
        kinds = [draw.choice((1, 1, 2, 3, 4, 5, 6))] * len(values)
        draft.fields["tokenizer.ggml.token_type"] = Field(
            ValueType.ARRAY, kinds, ValueType.INT32
        )
    return f"tokens {label}"


def vocabulary_key(draft: Draft, draw: Draw) -> str:
    count = len(draft.fields["tokenizer.ggml.tokens"].value)
    ids = "bos eos eot eom unknown seperator padding cls mask prefix suffix middle fim_pre fim_suf"
    switches = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix")
    name, field = draw.choice(
        (
            ("model", Field(ValueType.STRING, draw.choice(_MODELS))),
            (
                "pre",
                Field(
                    ValueType.STRING,
                    draw.choice(("", "x", "default", *_PRE_TOKENIZERS)),
                ),
            ),
            (
                f"{draw.choice(ids.split())}_token_id",
                Field(
                    ValueType.UINT32,
                    draw.choice((0, 1, count - 1, count, 2**31, 2**32 - 1)),
                ),
            ),
            (draw.choice(switches), Field(ValueType.BOOL, draw.random() < 0.5)),
            (
                "scores",
                Field(
                    ValueType.ARRAY, [draw.choice(_REALS)] * count, ValueType.FLOAT32
                ),
            ),
            ("scores", Field(ValueType.ARRAY, [0.0], ValueType.FLOAT32)),
            (
                "token_type",
                Field(
                    ValueType.ARRAY,
                    [draw.choice((-1, 0, 1, 2, 3, 4, 5, 6, 99))] * count,
                    ValueType.INT32,
                ),
            ),
            ("token_type", Field(ValueType.ARRAY, [1] * (count // 2), ValueType.INT32)),
            (
                "merges",
                Field(
                    ValueType.ARRAY, ["a b", "", " ", "ab", "a  b"], ValueType.STRING
                ),
            ),
            ("merges", Field(ValueType.ARRAY, [], ValueType.STRING)),
            (
                "precompiled_charsmap",
                Field(
                    ValueType.ARRAY,
                    [draw.randrange(256) for _ in range(64)],
                    ValueType.UINT8,
                ),
            ),
        )
    )
    draft.fields[f"tokenizer.ggml.{name}"] = field
    if name in ("pre", "merges") and draw.random() < 0.5:
        draft.fields["tokenizer.ggml.model"] = Field.of("gpt2")
        draft.fields.setdefault("tokenizer.ggml.merges", Field.of(["a b"]))
    return f"{name}={field.value!r:.40}"


def general(draft: Draft, draw: Draw) -> str:
    name, field = draw.choice(
        (
            ("split.count", Field(ValueType.UINT16, draw.choice((0, 1, 2, 65535)))),
            ("split.no", Field(ValueType.UINT16, 1)),
            ("split.tensors.count", Field(ValueType.INT32, draw.choice((-1, 5)))),
            (
                "general.alignment",
                Field(ValueType.UINT32, draw.choice((1, 8, 1 << 20))),
            ),
            (
                "general.type",
                Field(ValueType.STRING, draw.choice(("adapter", "mmproj"))),
            ),
            (
                "general.file_type",
                Field(ValueType.UINT32, draw.choice((1024, 2**31 - 1))),
            ),
            ("general.quantization_version", Field(ValueType.UINT32, 99)),
            (
                "general.name",
                Field(ValueType.STRING, draw.choice((*_TEXTS, "phi3 x" * 1000))),
            ),
            ("tokenizer.chat_template", Field(ValueType.STRING, "{{" * 400_000)),
        )
    )
    draft.fields[name] = field
    return f"{name}={field.value!r:.40}"


def other_architecture(draft: Draft, draw: Draw) -> str:
    """The same keys and tensors under another name."""
    name = draw.choice(_known_architectures())
    rename(draft, name)
    return f"architecture {name}"


def rename(draft: Draft, name: str) -> None:
    for key in [key for key in draft.fields if key.startswith(f"{draft.arch}.")]:
        draft.fields[name + key.removeprefix(draft.arch)] = draft.fields.pop(key)
    draft.fields["general.architecture"] = Field.of(name)


#: What may be wrong, and how often it is tried.
MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (number, 6),
    (number_by_layer, 4),
    (real, 2),
    (missing_key, 1),
    (retyped_key, 2),
    (further_key, 6),
    (scaling, 1),
    (sections, 1),
    (tensor_type, 4),
    (quantized, 2),
    (tensor_shape, 4),
    (missing_tensor, 1),
    (further_tensor, 2),
    (tensor_values, 1),
    (vocabulary, 2),
    (vocabulary_key, 4),
    (general, 1),
    (other_architecture, 1),
)


def mutated(base: Draft, draw: Draw, count: int) -> tuple[str, Draft]:
    """``base`` with ``count`` mutations, and what they are."""
    draft = base.copy()
    chosen = draw.choices(
        [mutation for mutation, _ in MUTATIONS],
        [weight for _, weight in MUTATIONS],
        k=count,
    )
    chosen.sort(
        key=lambda mutation: mutation is other_architecture
    )  # which renames the keys
    labels = [mutation(draft, draw) for mutation in chosen]
    return " & ".join(labels), draft
