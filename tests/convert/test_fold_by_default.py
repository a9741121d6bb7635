"""Where the gain goes if no one names an encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folded import YARN, bake, divergence, floats, norms_after_shifts
from tiny_gguf import write_random

from ggext.convert import ConvertOptions, convert
from ggext.errors import RopeError
from ggext.gguf.open import read_gguf
from ggext.rope.scaling import RopeScaling

pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def choice(model: Path, **options: Any) -> tuple[str, str]:
    from ggext.convert import plan

    planned = plan(
        ConvertOptions(
            model, options.pop("out", model.with_name("new.gguf")), YARN, **options
        )
    )
    assert planned.encoding is not None
    return planned.encoding.name, planned.why_not_folded


def test_a_query_norm_takes_the_gain_by_default(tmp_path: Path) -> None:
    """Also in place, and undo gives every byte back."""
    model = write_random(tmp_path / "model.gguf", "qwen3")
    before = digest(model)
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys")
    beside = bake(model, tmp_path / "beside.gguf", YARN, None)
    convert(ConvertOptions(model, rope=YARN, in_place=True))
    in_place = read_gguf(model)
    for baked in (beside, in_place):
        assert '"encoding":"folded"' in baked.get("ggext.recipe")
        changed = [
            name
            for name in keys.tensors
            if bytes(keys.tensor_data(name)) != bytes(baked.tensor_data(name))
        ]
        assert changed == ["blk.0.attn_q_norm.weight", "blk.1.attn_q_norm.weight"]
        assert divergence(keys.path, baked.path) <= 1e-6
        assert norms_after_shifts(baked.path, 100).max() <= 1e-3
    from ggext.gguf.inplace import undo

    convert(ConvertOptions(model, rope=RopeScaling("yarn", factor=2), in_place=True))
    again = bake(
        beside.path, tmp_path / "again.gguf", RopeScaling("yarn", factor=2), None
    )
    for name in again.tensors:
        assert bytes(again.tensor_data(name)) == bytes(
            read_gguf(model).tensor_data(name)
        )
    assert undo(model) == 2
    assert digest(model) == before


def test_rope_none_takes_the_gain_out_of_the_norms_in_place(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model.gguf", "qwen3")
    plain = read_gguf(model)
    name = "blk.1.attn_q_norm.weight"
    unscaled = floats(plain, name).copy()
    convert(ConvertOptions(model, rope=YARN, in_place=True))
    assert not np.allclose(floats(read_gguf(model), name), unscaled, rtol=1e-3)
    convert(ConvertOptions(model, rope=RopeScaling("none"), in_place=True))
    back = read_gguf(model)
    assert np.allclose(floats(back, name), unscaled, rtol=2**-22, atol=0)
    rope = [key for key in back.fields if ".rope." in key or key == "ggext.recipe"]
    assert rope == [key for key in plain.fields if ".rope." in key]


def test_weights_that_are_written_anyway_take_the_gain(
    checkpoint: Path, tmp_path: Path
) -> None:
    for kind in ("auto", "f16", "bf16", "q8_0"):
        assert choice(checkpoint, out=tmp_path / "x.gguf", type=kind) == (
            "folded",
            "",
        ), kind
    f16 = bake(checkpoint, tmp_path / "f16.gguf", None, None, type="f16").path
    assert choice(f16) == ("folded", "")
    q8 = bake(checkpoint, tmp_path / "q8.gguf", None, None, type="q8_0").path
    assert choice(q8) == (
        "keys",
        "the query weights are Q8_0 already and stay as they are",
    )
    stay = "a change in place leaves the query weights as they are"
    assert choice(f16, out=None, in_place=True) == ("keys", stay)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("gemma3", "would give its sliding-window layers the gain that cancels YaRN's"),
        ("hunyuan-dense", "norms queries and keys after their rotation"),
        ("deepseek2", "has no rows of its own to fold a gain into"),
        ("smollm3", "layers that have no RoPE"),
        ("stablelm", "has a row for each head"),
        ("minicpm3", "layer 0 has none of"),
    ],
)
def test_where_folding_cannot_be_the_keys_stay_and_the_reason_is_told(
    tmp_path: Path, arch: str, reason: str
) -> None:
    """The same words from the choice and from --encoding folded, which is refused where it cannot
    be done at all."""
    model = write_random(tmp_path / "model.gguf", arch)
    name, why = choice(model)
    assert name == "keys"
    assert reason in why
    if arch != "smollm3":
        with pytest.raises(RopeError, match=r"choose encoding='keys'") as refused:
            bake(model, tmp_path / "folded.gguf", YARN)
        assert why in str(refused.value)


def test_norms_in_other_parts_are_not_changed_in_place(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model.gguf", "qwen3")
    done = convert(ConvertOptions(model, tmp_path / "parts.gguf", split=30_000))
    assert len(done.files) > 2
    name, why = choice(done.files[0], out=None, in_place=True)
    assert name == "keys"
    assert (
        why == "the model is in several parts, and only the first is changed in place"
    )
