"""Configurations whose RoPE is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggext.rope.config import read_ropes
from ggext.rope.config_reader import CheckpointRope


def read(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, CheckpointRope]]:
    config = json.loads((shared / "configs" / f"{name}.json").read_text())
    return config, read_ropes(config, "norm", f"{name}.json")


def llama(**config: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    } | config


NESTED = {
    "full_attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e6,
        "original_max_position_embeddings": 1024,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
