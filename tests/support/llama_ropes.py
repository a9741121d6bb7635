"""Llama's geometry and configurations."""

from __future__ import annotations

from typing import Any

from ggext.rope.scaling import RopeGeometry

GEOMETRY = RopeGeometry(
    n_rot=64, head_dim=64, base=10000.0, layout="norm", trained_context=4096
)


def llama(**config: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    } | config
