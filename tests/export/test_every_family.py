"""Each family's file back to a checkpoint, with the original's configuration, and to a file again:
the same tensors and the same keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from family_rows import ROWS, Row
from renamed import rename
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.errors import GgufError
from ggext.export import ExportOptions, export
from ggext.gguf.open import read_gguf
from ggext.rope.scaling import RopeScaling

pytest.importorskip("transformers", reason="the extra reference is not installed")
pytestmark = pytest.mark.slow

#: One row of each family.
FIRST = {row.family: name for name, row in reversed(ROWS.items())}
#: Where a scaling is not written into the configuration: transformers cannot say YaRN over pairs of
#: which some never turn, and DeepSeek 4 has kinds of layers by names of its own.
UNSAID = ("deepseek_v4", "gemma4", "gemma4_text")
#: Of NTK-aware scaling, which is a larger base in config.json.
UNWRITTEN = ".rope.scaling.original_context_length"
#: Computed by exp and log, or multiplied, once more.
ROUNDED = 1e-6


def original(row: Row, folder: Path) -> Path:
    made = make_model(folder / "model", row.model_type, **row.config)
    return rename(made, folder / "renamed", row.renamed) if row.renamed else made


def without_weights(checkpoint: Path, folder: Path) -> Path:
    """What is needed of the original."""
    shutil.copytree(
        checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")
    )
    return folder


def assert_alike(one: Path, other: Path) -> None:
    first, again = read_gguf(one), read_gguf(other)
    assert first.tensors.keys() == again.tensors.keys()
    for name in first.tensors:
        values, back = (
            np.frombuffer(file.tensor_data(name), "<f4") for file in (first, again)
        )
        np.testing.assert_allclose(back, values, rtol=ROUNDED, atol=0, err_msg=name)
    for key in first.fields.keys() | again.fields.keys():
        if not key.startswith(("general.", "ggext.")) and not key.endswith(UNWRITTEN):
            assert first.get(key) == again.get(key), key


@pytest.mark.parametrize("family", sorted(FIRST))
def test_the_same_tensors_come_back(family: str, tmp_path: Path) -> None:
    row = ROWS[FIRST[family]]
    checkpoint, file = original(row, tmp_path), tmp_path / "model.gguf"
    convert(ConvertOptions(checkpoint, file, row.rope))
    small = without_weights(checkpoint, tmp_path / "small")
    back = tmp_path / "back"
    if family in UNSAID and row.rope is not None:
        with pytest.raises(GgufError, match="take the scaling out first"):
            export(ExportOptions(file, back, original=small))
        file = tmp_path / "unscaled.gguf"
        convert(ConvertOptions(checkpoint, file, RopeScaling("none")))
    export(ExportOptions(file, back, original=small))
    convert(ConvertOptions(back, tmp_path / "again.gguf"))
    assert_alike(file, tmp_path / "again.gguf")


def test_an_original_of_another_model_is_refused(tmp_path: Path) -> None:
    one = make_model(tmp_path / "one", "starcoder2")
    convert(ConvertOptions(one, tmp_path / "one.gguf"))
    path = one / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"num_key_value_heads": 4}))
    out = tmp_path / "back"
    with pytest.raises(GgufError, match=r"head_count_kv 2, and .* says 4: name the"):
        export(ExportOptions(tmp_path / "one.gguf", out, original=one))
    other = make_model(tmp_path / "other", "phi")
    with pytest.raises(GgufError, match=r"starcoder2, and .* is converted to phi2"):
        export(ExportOptions(tmp_path / "one.gguf", out, original=other))
    assert not out.exists()


def test_transformers_computes_the_same_of_a_hybrid(tmp_path: Path) -> None:
    """A recurrent one whose weights are split, ordered and computed."""
    import torch
    from transformers import AutoModelForCausalLM

    row = ROWS[FIRST["granitemoehybrid"]]
    checkpoint, file = original(row, tmp_path), tmp_path / "model.gguf"
    convert(ConvertOptions(checkpoint, file))
    export(ExportOptions(file, tmp_path / "back", original=checkpoint))
    tokens = torch.arange(2, 50)[None]
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(path)(tokens).logits
            for path in (checkpoint, tmp_path / "back")
        )
    assert float((expected - found).abs().max()) <= 1e-4
