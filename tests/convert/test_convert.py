"""`ggext convert` as a user calls it: what it writes, and with which words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import assert_refused, bake, ggext
from tiny import make_llama

from ggext.gguf.open import read_gguf
from ggext.gguf.types import ValueType, type_name
from ggext.rope.recipe import parse_recipe

pytest.importorskip("transformers")


def test_yarn_keys_and_their_types(checkpoint: Path, tmp_path: Path) -> None:
    gguf = bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4, "--encoding", "keys")
    assert gguf.get("llama.context_length") == 256
    assert gguf.get("llama.rope.scaling.type") == "yarn"
    assert gguf.get("llama.rope.scaling.original_context_length") == 64
    assert gguf.fields["llama.rope.scaling.factor"].type is ValueType.FLOAT32
    assert gguf.get("llama.rope.scaling.factor") == 4.0
    assert gguf.fields["llama.rope.scaling.attn_factor"].type is ValueType.FLOAT32
    assert gguf.get("llama.rope.scaling.attn_factor") == 1.0


def test_the_recipe_says_what_was_asked(checkpoint: Path, tmp_path: Path) -> None:
    gguf = bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4, "--beta-slow", 0.1)
    recipe = parse_recipe(gguf.get("ggext.recipe"))
    assert recipe.scaling.given() == {
        "factor": 4.0,
        "original_context": 64,
        "beta_slow": 0.1,
    }
    assert recipe.encoding == "folded"
    assert recipe.source == "the command line"
    assert "rope_freqs.weight" in gguf.tensors


def test_target_context_picks_the_smallest_factor(
    checkpoint: Path, tmp_path: Path
) -> None:
    gguf = bake(checkpoint, tmp_path / "out.gguf", "--target-context", 200)
    assert gguf.get("llama.rope.scaling.type") == "yarn"
    assert gguf.get("llama.rope.scaling.factor") == 200 / 64
    assert gguf.get("llama.context_length") == 200
    linear = bake(
        checkpoint,
        tmp_path / "linear.gguf",
        "--rope",
        "linear",
        "--target-context",
        200,
    )
    assert linear.get("llama.rope.scaling.type") == "linear"


def test_a_target_within_the_trained_context_needs_no_scaling(
    checkpoint: Path, tmp_path: Path
) -> None:
    result = ggext("convert", checkpoint, tmp_path / "out.gguf", "--target-context", 50)
    assert "trained on 64 tokens and reaches 50 without a scaling" in result.output
    assert read_gguf(tmp_path / "out.gguf").get("llama.rope.scaling.type") == "none"


def test_original_context_moves_the_table(checkpoint: Path, tmp_path: Path) -> None:
    gguf = bake(
        checkpoint, tmp_path / "out.gguf", "--yarn", 4, "--original-context", 32
    )
    assert gguf.get("llama.rope.scaling.original_context_length") == 32
    assert gguf.get("llama.context_length") == 128


@pytest.mark.parametrize(
    ("name", "bound"), [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)]
)
def test_types(checkpoint: Path, tmp_path: Path, name: str, bound: float) -> None:
    """Every value is the nearest that the type holds (the gguf library decodes them)."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize
    from safetensors.numpy import load_file

    gguf = bake(checkpoint, tmp_path / "out.gguf", "--type", name)
    info = gguf.tensors["blk.0.ffn_down.weight"]
    assert type_name(info.type) == name.upper()
    assert type_name(gguf.tensors["blk.0.attn_norm.weight"].type) == "F32"
    original = load_file(checkpoint / "model.safetensors")[
        "model.layers.0.mlp.down_proj.weight"
    ]
    raw = np.frombuffer(gguf.tensor_data(info.name), np.uint8).reshape(
        info.shape[1], -1
    )
    kind = GGMLQuantizationType(info.type)
    values = dequantize(raw.view({"f32": "<f4", "f16": "<f2"}.get(name, "u1")), kind)
    assert np.abs(values - original).max() <= bound * np.abs(original).max()


def test_rows_that_are_no_whole_blocks_stay_f16(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "odd", intermediate_size=172)
    result = ggext("convert", folder, tmp_path / "out.gguf", "--type", "q8_0")
    assert "rows of 172 values" in result.output
    gguf = read_gguf(tmp_path / "out.gguf")
    assert type_name(gguf.tensors["blk.0.ffn_down.weight"].type) == "F16"


def test_a_value_that_f16_cannot_hold_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = make_llama(tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.tensor(1e6)
    save_file(tensors, folder / "model.safetensors")
    result = ggext("convert", folder, tmp_path / "out.gguf", "--type", "f16")
    assert_refused(
        result, "has the value 1e+06, which float16 cannot hold; choose --type bf16"
    )
    assert not (tmp_path / "out.gguf").exists()


def test_k_quants_through_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = make_llama(
        tmp_path / "wide", hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    gguf = bake(folder, tmp_path / "out.gguf", "--yarn", 4, "--type", "Q4_K_M")
    assert "Q4_K" in {type_name(t.type) for t in gguf.tensors.values()}
    assert gguf.get("llama.rope.scaling.factor") == 4.0
    assert "ggext.recipe" in gguf.fields
    assert not list(tmp_path.glob(".*.part"))
    assert_refused(
        ggext("convert", folder, tmp_path / "x.gguf", "--type", "Q4_X"), "Q4_X", 2
    )
    again = ggext(
        "convert", tmp_path / "out.gguf", tmp_path / "x.gguf", "--type", "q8_0"
    )
    assert_refused(again, "the file is quantized already", 2)
    assert not (tmp_path / "x.gguf").exists()


def test_the_type_of_a_gguf_file_is_changed_by_llama_cpp(
    checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    bake(checkpoint, tmp_path / "f32.gguf", "--yarn", 4)
    gguf = bake(
        tmp_path / "f32.gguf", tmp_path / "q8.gguf", "--type", "q8_0", "--yarn", 2
    )
    assert type_name(gguf.tensors["blk.0.attn_q.weight"].type) == "Q8_0"
    assert gguf.get("llama.context_length") == 128
    assert ggext("verify", tmp_path / "q8.gguf").exit_code == 0


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Tensors of 82 MB, converted some MB at a time: NumPy's own allocations are counted too."""
    import tracemalloc

    from ggext.convert import ConvertOptions, convert

    folder = make_llama(
        tmp_path / "wide", intermediate_size=160_000, num_hidden_layers=1
    )
    tracemalloc.start()
    convert(ConvertOptions(folder, tmp_path / "out.gguf", type="f16"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 41 << 20  # less than half of one tensor


def test_pickled_checkpoints(checkpoint: Path, copy: Path, tmp_path: Path) -> None:
    """The same tensors give the same file; bfloat16 and shards as well."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    bake(copy, tmp_path / "pickled.gguf", "--yarn", 4)
    whole = bake(checkpoint, tmp_path / "whole.gguf", "--yarn", 4)
    pickled = read_gguf(tmp_path / "pickled.gguf")
    assert all(
        bytes(pickled.tensor_data(n)) == bytes(whole.tensor_data(n))
        for n in whole.tensors
    )

    torch.save(
        {k: v.bfloat16() for k, v in tensors.items()}, copy / "pytorch_model-1.bin"
    )
    (copy / "pytorch_model.bin").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-1.bin")}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    sharded = bake(copy, tmp_path / "sharded.gguf")
    assert type_name(sharded.tensors["output.weight"].type) == "BF16"


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


def test_a_pickle_that_runs_code_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    (copy / "model.safetensors").unlink()
    for content in ({"model.norm.weight": Hostile()}, [1, 2], {"a": 3}):
        torch.save(content, copy / "pytorch_model.bin")
        assert_refused(ggext("convert", copy, tmp_path / "x.gguf"), "use safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"nonsense")
    assert_refused(ggext("convert", copy, tmp_path / "x.gguf"), "use safetensors")
    assert not (tmp_path / "owned").exists()


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = ggext(
        "convert", checkpoint, tmp_path / "out.gguf", "--yarn", 4, "--dry-run"
    )
    assert result.exit_code == 0
    assert "context: 64 → 256 tokens" in result.output
    assert "dry run: nothing was written" in result.output
    assert not (tmp_path / "out.gguf").exists()


def test_default_output_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ggext("convert", checkpoint, "--yarn", 4, "--type", "f16").exit_code == 0
    assert (tmp_path / "tiny-yarn4-f16.gguf").exists()


def test_a_plan_needs_neither_numpy_nor_all_of_gguf(checkpoint: Path) -> None:
    """They take as long as the rest of it; a conversion imports them while it copies."""
    code = (
        "import sys; from pathlib import Path\n"
        "from ggext.convert import ConvertOptions, plan\n"
        f"plan(ConvertOptions(Path({str(checkpoint)!r}), Path('x.gguf')))\n"
        "print([name for name in ('numpy', 'gguf', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_what_is_wrong_with_a_card_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """In a plan, and of a conversion, which reads the card while it writes."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    for more in (["--dry-run"], []):
        result = ggext("convert", folder, tmp_path / "x.gguf", *more)
        assert (
            result.output.count("note: README.md: its front matter cannot be used") == 1
        ), result.output


def test_names_and_nothing_to_write(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """newcomer.md, B11 and B12: the name says the scaling that the file has, and what asks for
    nothing is told so."""
    monkeypatch.chdir(tmp_path)
    bake(checkpoint, tmp_path / "m.gguf")

    def told(*arguments: object) -> str:
        return ggext("convert", *arguments).output

    assert "wrote m-yarn2.gguf" in told("m.gguf", "--yarn", 2)
    assert "wrote m-yarn4.gguf" in (again := told("m-yarn2.gguf", "--yarn", 4))
    assert "context: 128 → 256 tokens, trained on 64" in again
    assert "yarn scaling by 2 is replaced, not added to" in again
    none = told("m-yarn2.gguf", "--rope", "none", "--dry-run")
    assert "context: 128 → 64 tokens" in none
    assert "note: m.gguf exists; --force replaces it" in none
    nothing = "ggext: there is nothing to write: "
    assert f"{nothing}no scaling, type or encoding is asked for" in told("m.gguf")
    reaches = (
        f"{nothing}the model was trained on 64 tokens and reaches 32 without a scaling"
    )
    assert reaches in told("m.gguf", "--target-context", 32)
    assert f"{nothing}a factor of 1 scales nothing" in told("m.gguf", "--yarn", 1)
    unproved = "yarn was never shown to work beyond a factor of 32, and this is 64"
    assert unproved in told("m.gguf", "--yarn", 64, "--dry-run")
