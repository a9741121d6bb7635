"""A gain folded into models whose layers do not all rotate alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered import YARN, bake

from ggext.errors import RopeError
from ggext.gguf.open import read_gguf
from ggext.rope.decode import layer_kinds
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

# files

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["gemma2", "olmo3", "exaone4", "phi", "gpt_oss"])
def test_a_folded_file_computes_the_same(
    models: Path, tmp_path: Path, name: str
) -> None:
    """The gain goes into the layers that the scaling concerns, and into no other."""
    plan = bake(models / name, tmp_path / "out.gguf", encoding="folded")
    assert plan.encoding is not None
    assert plan.encoding.name == "folded"
    # a shift turns all layers of EXAONE, and takes the gain's key for the sliding ones of OLMo too
    assert plan.encoding.shift_safe is (name not in ("exaone4", "olmo3"))
    assert (
        verify(tmp_path / "out.gguf", levels=["shift"]).shift_safe
        is plan.encoding.shift_safe
    )
    report = verify(
        tmp_path / "out.gguf", models / name, levels=["table", "logits"], tolerance=5e-6
    )
    assert report.passed, report.checks
    bake(models / name, tmp_path / "plain.gguf", RopeScaling("none"))
    one, other = read_gguf(tmp_path / "out.gguf"), read_gguf(tmp_path / "plain.gguf")
    kinds = layer_kinds(one.arch_keys(), one.arch)
    touched = {
        n.split(".")[1]
        for n in other.tensors
        if bytes(one.tensor_data(n)) != bytes(other.tensor_data(n))
    }
    assert touched == {str(i) for i, kind in enumerate(kinds) if kind == "scaled"}


@pytest.mark.parametrize(
    "rope", [RopeScaling("linear", factor=4), YARN], ids=["linear", "yarn"]
)
@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3", "olmo3", "gpt_oss", "deepseek_v3"]
)
def test_what_is_said_of_shifts_is_measured(
    models: Path, tmp_path: Path, name: str, rope: RopeScaling
) -> None:
    plan = bake(models / name, tmp_path / "out.gguf", rope)
    assert plan.encoding is not None
    report = verify(tmp_path / "out.gguf", levels=["shift"])
    safe = rope.method == "linear" or name in (
        "gemma2",
        "gpt_oss",
    )  # YaRN's gain is folded there
    assert report.shift_safe is plan.encoding.shift_safe is safe


def test_gemma3_is_not_folded(models: Path, tmp_path: Path) -> None:
    """Without a gain in the full layers' kernel the sliding ones would have one."""
    with pytest.raises(
        RopeError, match="gemma3 would give its sliding-window layers the gain"
    ):
        bake(models / "gemma3", tmp_path / "out.gguf", encoding="folded")
