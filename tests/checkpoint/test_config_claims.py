"""What a config.json claims of RoPE, in every family and every spelling that people publish, against
the rotary class that transformers makes of the same file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from family_rows import ROWS
from ggext.converters import family_of
from tiny import SIZES

from ggext.checkpoint.config import Config
from ggext.errors import GgextError
from ggext.rope.methods import make_table, sliding_table

pytest.importorskip("transformers")

_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
#: Rope parameters, without a type's key.
_PARAMETERS: dict[str, dict[str, Any]] = {
    "yarn": _YARN,
    "yarn with a key that no one reads": _YARN | {"attn_factor": 0.9},
    "yarn with its own gain and betas": _YARN
    | {"attention_factor": 0.9, "beta_fast": 16, "beta_slow": 2},
    "yarn with mscale": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn that does not round": _YARN | {"truncate": False},
    "yarn without its original context": {"factor": 4.0},
    "yarn with nulls": _YARN | {"attention_factor": None, "beta_fast": None},
    "linear": {"factor": 2.0},
    "llama3": _YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "default": {},
    "default with a factor": {"factor": 4.0},
}
_ODD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no type": {"rope_scaling": {"factor": 4.0}},
    "both, the same": {
        "rope_scaling": {"type": "yarn", "rope_theta": 1e6, **_YARN},
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000, **_YARN},
    },
    "both, of which one is empty": {
        "rope_scaling": {},
        "rope_parameters": {"rope_type": "yarn", **_YARN},
    },
    "both, of which one is null": {
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "yarn", **_YARN},
    },
    "both, and they differ": {
        "rope_scaling": {"type": "yarn", "rope_theta": 1e6, **_YARN},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
    },
    "both, one without a base": {
        "rope_scaling": {"type": "yarn", **_YARN},
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **_YARN},
    },
    "two types": {"rope_scaling": {"type": "linear", "rope_type": "yarn", **_YARN}},
    "original context outside": {
        "rope_scaling": {"type": "yarn", **_YARN},
        "original_max_position_embeddings": 32,
    },
    "two bases": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rope_theta": 1e5,
    },
}
#: Families without a judge in the pinned transformers, or whose rotary class stands elsewhere.
_MODULES = {"gemma3_text": "gemma3", "llama4_text": "llama4"}
_JUDGED = sorted(
    {row.model_type for row in ROWS.values()} - {"internlm3", "llama4_text"}
)


def spellings() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from _ODD.items()
    for index, (name, parameters) in enumerate(_PARAMETERS.items()):
        kind = name.split()[0]
        older, newer = ("type", "rope_type") if index % 2 else ("rope_type", "type")
        yield (
            f"{name}, older",
            {"rope_scaling": {older: kind, **parameters}, "rope_theta": 3e5},
        )
        inside = {newer: kind, "rope_theta": 3e5, **parameters}
        yield f"{name}, newer", {"rope_parameters": inside}


def judged(
    model_type: str, config: dict[str, Any]
) -> dict[str, tuple[list[float], float]]:
    """Layer kind → frequencies and gain, as the family's rotary class has them."""
    from transformers import AutoConfig

    values = json.loads(json.dumps(config))  # transformers changes what it is given
    if model_type == "mixtral":  # whose class does not work without a head's size
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    made = AutoConfig.for_model(model_type, **values)
    name = _MODULES.get(model_type, model_type)
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    classes = [
        value
        for key, value in vars(module).items()
        if key.endswith("RotaryEmbedding") and value.__module__ == module.__name__
    ]
    rotary = classes[0](made)
    buffers = dict(rotary.named_buffers())
    kinds = [
        kind
        for kind in ("full_attention", "sliding_attention")
        if f"{kind}_inv_freq" in buffers
    ]
    if not kinds:
        return {"all": (buffers["inv_freq"].tolist(), rotary.attention_scaling)}
    return {
        kind: (
            buffers[f"{kind}_inv_freq"].tolist(),
            getattr(rotary, f"{kind}_attention_scaling"),
        )
        for kind in kinds
    }


def sizes_of(model_type: str) -> dict[str, Any]:
    row = next(row for row in ROWS.values() if row.model_type == model_type)
    of_rope = ("rope_parameters", "rope_scaling", "original_max_position_embeddings")
    values = {k: v for k, v in (SIZES | row.config).items() if k not in of_rope}
    values = {k: v for k, v in values.items() if v is not None or k not in SIZES}
    return values | {"max_position_embeddings": 256}


@pytest.mark.parametrize("model_type", _JUDGED)
def test_every_spelling_means_what_transformers_makes_of_it(model_type: str) -> None:
    wrong = []
    for name, rope in spellings():
        config = sizes_of(model_type) | rope
        try:
            expected = judged(model_type, config)
        except Exception:  # noqa: BLE001 - what the judge refuses may be refused
            continue
        try:
            read = (
                family_of(Config(config | {"model_type": model_type}, "c"))
                .rope()
                .understood()
            )
        except GgextError as error:
            if "llama.cpp" not in str(error):  # which alone may be why a family refuses
                wrong.append(f"{name}: refused: {error}")
            continue
        table = make_table(read.scaling, read.geometry, length=1)
        frequencies, gain = expected.get("all") or expected["full_attention"]
        if model_type == "mistral4" and 2 * len(frequencies) != read.geometry.n_rot:
            continue  # transformers takes whole heads for their rotated part here, and then fails
        sliding = sliding_table(read.scaling, read.geometry)
        same = table.inv_freq == pytest.approx(frequencies, rel=1e-6)
        if sliding is not None:
            other = expected["sliding_attention"][0]
            same = same and sliding.inv_freq == pytest.approx(other, rel=1e-6)
        if not same or abs(table.attention_factor - gain) > 1e-6:
            wrong.append(f"{name}: {read.scaling}, base {read.geometry.base:g}")
    assert wrong == []
