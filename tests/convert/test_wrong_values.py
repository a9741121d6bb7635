"""A configuration with a value of a wrong kind under any of its keys is read, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from ggext.converters import family_of, known_families

from ggext.checkpoint.config import Config
from ggext.errors import GgextError

WRONG: tuple[Any, ...] = (
    [1],
    "x",
    {"a": 1},
    -1,
    True,
    [[1], 4],
    [None],
    {"a": [1]},
    math.nan,
    [],
)
#: Keys of published configurations that transformers does not save.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "deepseek_v4": (
        *("compress_rates", "compress_rate_csa", "compress_ratios"),
        *("num_hash_layers", "qk_rope_head_dim"),
    ),
    "minimax_m3_vl": ("sparse_attention_config", "moe_layer_freq", "rotary_dim"),
    "minimax_m3_vl_text": ("sparse_attention_config", "moe_layer_freq"),
    "step3p5": ("rope_theta", "partial_rotary_factors", "moe_layers_enum"),
}


def objects_in(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration, its text part, and the objects within."""
    yield config
    text = config.get("text_config")
    parts = [config] + [text] * isinstance(text, dict)
    for part in parts:
        yield from (value for value in part.values() if isinstance(value, dict))


def read(config: dict[str, Any]) -> None:
    family = family_of(Config(config, "config.json"))
    family.rope()
    family.metadata()
    next(iter(family.tensors()))


@pytest.mark.parametrize("model_type", known_families())
def test_a_value_of_a_wrong_kind_is_no_fault_of_ggext(model_type: str) -> None:
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    if model_type not in mapping:
        pytest.skip(f"transformers has no class for {model_type}")
    config = json.loads(json.dumps(mapping[model_type]().to_dict()))
    config["model_type"] = model_type
    for key in PUBLISHED.get(model_type, ()):
        config.setdefault(key, None)
    for part in list(objects_in(config)):
        for key in set(part) - {"model_type"}:
            given = part[key]
            for value in WRONG:
                part[key] = value
                try:
                    read(config)
                except GgextError:
                    continue
                finally:
                    part[key] = given
