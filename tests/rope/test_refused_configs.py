"""Configurations whose RoPE is refused."""

from __future__ import annotations

from typing import Any

import pytest
from rope_configs import NESTED, llama

from ggext.errors import RopeError
from ggext.rope.config import read_ropes
from ggext.rope.methods import make_tables
from ggext.rope.scaling import RopeTable

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_parameters": NESTED | {"factor": 2}},
            "stands factor, which no kind of layer is",
        ),
        (
            {"rope_parameters": NESTED | {"third": {}}},
            "stands third, which no kind of layer is",
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}},
            "must be three whole numbers that add to 32",
        ),
        ({"rope_scaling": {"type": "mrope"}}, "rope type 'mrope' is unknown"),
        (
            {"partial_rotary_factor": 0.0},
            "partial_rotary_factor is 0; it must be above 0",
        ),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"partial_rotary_factor": 0.05}, "3 rotated dimensions in a head of 64"),
        ({"rope_theta": 1.0}, "rope base .* is 1; it must be a finite number above 1"),
        ({"rope_theta": float("nan")}, "rope base .* is nan"),
        (
            {
                "rope_scaling": {
                    "type": "longrope",
                    "factor": 4.0,
                    "short_factor": [1.0] * 32,
                    "long_factor": [1.0] * 31,
                },
                "original_max_position_embeddings": 1024,
            },
            "long_factors has 31 values; the model rotates 32 pairs",
        ),
        (
            {
                "rope_scaling": {
                    "type": "su",
                    "short_factor": [1.0] * 32,
                    "long_factor": [1.0] * 31 + [0.0],
                }
            },
            "long_factors holds 0.0; it must be numbers above 0",
        ),
        (
            {
                "rope_scaling": {
                    "type": "su",
                    "short_factor": [1.0] * 31 + [float("nan")],
                    "long_factor": [1.0] * 32,
                }
            },
            "short_factors holds nan",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [], "long_factor": [1.0]}},
            "must be a list of numbers",
        ),
        (
            {"rope_scaling": {"type": "su", "long_factor": [1.0] * 32}},
            "needs short_factor",
        ),
    ],
)
def test_bad_configs_are_refused(config: dict[str, Any], message: str) -> None:
    def read() -> list[RopeTable]:
        ropes = read_ropes(llama(**config), "neox").values()
        return [
            table
            for rope in ropes
            for table in make_tables(rope.scaling, rope.geometry)
        ]

    with pytest.raises(RopeError, match=message):
        read()
