"""Each family: a tiny random model of its shape, converted, and its logits in llama.cpp against transformers'."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

YARN_4 = RopeScaling("yarn", factor=4)


@dataclass(frozen=True)
class Row:
    """``config``: what is not as in ``tiny.make_model``. ``rope``: baked over the checkpoint's own, ``None`` for the
    checkpoint's own. ``bound``: on the mean KL in nats; what it is where it is not 1e-6 stands in the family's file."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    rope: RopeScaling | None = YARN_4
    bound: float = 1e-6


_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

ROWS = {
    "llama": Row("llama"),
    "mistral": Row("mistral", {"sliding_window": None}),
    "qwen2": Row("qwen2"),
    "qwen3": Row("qwen3", {"head_dim": 24}),
    "qwen3_moe": Row("qwen3_moe", _EXPERTS | {"norm_topk_prob": True}),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_logits_equal_transformers(row: Row, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, row.rope))
    report = verify(out, checkpoint)
    logits = {check.quantity: check.value for check in report.checks if check.level == "logits"}
    assert len(logits) == 2, "in the window and beyond it"
    assert max(logits.values()) <= row.bound, logits
    assert report.passed, report
