"""A checkpoint whose rows are whole blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_llama

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projections of 256, 128 and 384 rows, so that blocks of 128 fit (transformers takes no
    others)."""
    shape = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return make_llama(
        tmp_path_factory.mktemp("float8") / "plain", dtype="bfloat16", **shape
    )
