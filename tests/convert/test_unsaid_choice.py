"""GLM-5 files that others made do not say which layers choose tokens: llama.cpp goes by the
context, which a scaling changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_gguf import base_of

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope.scaling import RopeScaling

pytest.importorskip("llama_cpp")

KEY = "glm-dsa.attention.indexer.types"
IDS = [3 + 7 * i % 250 for i in range(120)]
CONTEXT = 1 << 18


@pytest.fixture
def made_elsewhere(tmp_path: Path) -> Path:
    """As upstream's converter writes GLM 5: four layers, and no such key."""
    fields, arrays = base_of("glm-dsa")
    arrays |= {
        f"blk.{to}.{name.split('.', 2)[2]}": values
        for name, values in arrays.items()
        if name.startswith("blk.1.")
        for to in (2, 3)
    }
    fields |= {
        "glm-dsa.block_count": 4,
        "glm-dsa.context_length": CONTEXT,
        "glm-dsa.attention.indexer.top_k": 10,
    }
    fields = {key: Field.of(value) for key, value in fields.items() if key != KEY}
    tensors = [
        TensorToWrite(n, a.shape[::-1], 0, a.nbytes, lambda a=a: [a.tobytes()])  # type: ignore[misc]
        for n, a in arrays.items()
    ]
    write_gguf(tmp_path / "elsewhere.gguf", fields, tensors)
    return tmp_path / "elsewhere.gguf"


def logits(path: Path) -> np.ndarray[Any, Any]:
    from ggext.runtime.engine import Model, Session, SessionOptions

    options = SessionOptions(n_ctx=256, kv_type="f32", flash_attention=False)
    with Model.open(path) as model, Session(model, options) as session:
        return session.logits(IDS)


def without_the_key(path: Path, out: Path) -> Path:
    gguf = read_gguf(path)
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(out, {k: f for k, f in gguf.fields.items() if k != KEY}, tensors)
    return out


def test_a_scaling_leaves_the_layers_that_choose(
    made_elsewhere: Path, tmp_path: Path
) -> None:
    """By 4 to 1,048,576 tokens, from where on llama.cpp takes another pattern."""
    assert KEY not in read_gguf(made_elsewhere).fields
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(made_elsewhere, out, RopeScaling("ntk", factor=4)))
    assert any("4 of 4 layers choose tokens" in note for note in planned.notes)
    written = read_gguf(out)
    assert written.get("glm-dsa.context_length") == 4 * CONTEXT
    assert written.get(KEY) == [True] * 4
    silent = without_the_key(out, tmp_path / "silent.gguf")
    assert np.abs(logits(silent) - logits(out)).max() > 1e-2
    plain = tmp_path / "plain.gguf"
    convert(ConvertOptions(made_elsewhere, plain))
    assert np.array_equal(logits(plain), logits(made_elsewhere))


def test_it_is_said_of_the_file(made_elsewhere: Path, tmp_path: Path) -> None:
    words = "has no attention.indexer.types, and llama.cpp goes by its context: 4 of 4"
    result = CliRunner().invoke(main, ["inspect", str(made_elsewhere)])
    assert words in " ".join(result.output.split())
    result = CliRunner().invoke(main, ["verify", str(made_elsewhere)])
    assert words in " ".join(result.output.split())
    convert(ConvertOptions(made_elsewhere, tmp_path / "said.gguf"))
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "said.gguf")])
    assert "indexer" not in result.output
