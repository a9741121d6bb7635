"""DeepSeek 4, whose tokens are compressed: the cells that its windows get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sized_gguf import logged_sizes
from tiny_gguf import write_random

from ggext.footprint.cache import Swa
from ggext.runtime import llama
from ggext.runtime.engine import Model, Session, SessionOptions

pytest.importorskip("llama_cpp")

CONTEXT = 1024
IDS = [3 + 7 * i % 250 for i in range(700)]


def test_small_windows_are_the_default_and_change_nothing(tmp_path: Path) -> None:
    """Nothing can be cut back to in whole ones."""
    path = write_random(
        tmp_path / "model.gguf",
        "deepseek4",
        extra_keys={"deepseek4.context_length": CONTEXT},
    )
    choices: tuple[Swa, ...] = ("auto", "full")
    found, sizes = {}, {}
    with Model.open(path) as model:
        for swa in choices:
            options = SessionOptions(
                CONTEXT, 1, 64, "f32", flash_attention=False, swa=swa
            )
            with llama.listening(llama.Log(None)), Session(model, options) as session:
                sizes[swa] = logged_sizes(0, llama.current_log()).cache
                session.evaluate(IDS[:500])
                assert session.evaluate(IDS).reused == 500
                found[swa] = session.last_logits()
    assert np.abs(found["auto"] - found["full"]).max() <= 1e-5
    assert sizes["auto"] < 0.7 * sizes["full"]
