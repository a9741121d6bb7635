"""``ggext convert`` as a user calls it: what it writes, what it refuses, and with which words."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tiny import make_llama

from ggext.cli import main
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import ValueType, type_name
from ggext.rope.recipe import parse_recipe

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def bake(*arguments: object) -> GgufFile:
    result = ggext("convert", *arguments)
    assert result.exit_code == 0, result.output
    return read_gguf(Path(str(arguments[1])))


def assert_refused(result: Result, message: str, code: int = 1) -> None:
    """One line on standard error, the exit code, and no traceback."""
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


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


# an existing GGUF file goes in


def test_a_gguf_file_is_rebaked_not_stacked(checkpoint: Path, tmp_path: Path) -> None:
    plain = bake(checkpoint, tmp_path / "plain.gguf")
    yarn = bake(
        tmp_path / "plain.gguf",
        tmp_path / "yarn.gguf",
        "--yarn",
        4,
        "--encoding",
        "keys",
    )
    assert yarn.get("llama.context_length") == 256
    asked = ["--yarn", 2, "--beta-slow", 0.1, "--encoding", "tensor"]
    betas = bake(tmp_path / "yarn.gguf", tmp_path / "betas.gguf", *asked)
    assert betas.get("llama.context_length") == 128
    assert "llama.rope.scaling.factor" not in betas.fields
    back = bake(tmp_path / "betas.gguf", tmp_path / "back.gguf", "--rope", "none")
    assert {k: v for k, v in back.fields.items() if k != "ggext.recipe"} == {
        k: v for k, v in plain.fields.items() if k != "ggext.recipe"
    }
    assert list(back.tensors) == list(plain.tensors)
    for name in plain.tensors:
        assert bytes(back.tensor_data(name)) == bytes(plain.tensor_data(name))


def test_ntk_on_a_gguf_file_can_be_undone(checkpoint: Path, tmp_path: Path) -> None:
    """NTK changes the base in the file; the recipe remembers the model's own."""
    ntk = bake(checkpoint, tmp_path / "ntk.gguf", "--ntk", 4)
    assert ntk.get("llama.rope.freq_base") > 10000
    back = bake(tmp_path / "ntk.gguf", tmp_path / "back.gguf", "--rope", "none")
    assert back.get("llama.rope.freq_base") == 10000
    assert back.get("llama.context_length") == 64


def test_a_gguf_file_without_request_is_copied(
    checkpoint: Path, tmp_path: Path
) -> None:
    yarn = bake(checkpoint, tmp_path / "yarn.gguf", "--yarn", 4)
    copy = bake(tmp_path / "yarn.gguf", tmp_path / "copy.gguf")
    assert copy.fields == yarn.fields


def test_frequency_factors_of_unknown_origin_need_an_original_context(
    checkpoint: Path, tmp_path: Path
) -> None:
    from ggext.gguf.types import Field
    from ggext.gguf.writer import TensorToWrite, write_gguf

    llama3 = bake(checkpoint, tmp_path / "llama3.gguf", "--llama3", 8)
    ours = ("ggext.recipe", "llama.rope.scaling.original_context_length")
    fields = {k: f for k, f in llama3.fields.items() if k not in ours}
    fields["llama.context_length"] = Field.of(512)
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [llama3.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in llama3.tensors.values()
    ]
    foreign = tmp_path / "foreign.gguf"
    write_gguf(foreign, fields, tensors)
    assert_refused(
        ggext("convert", foreign, tmp_path / "x.gguf", "--yarn", 4),
        "--original-context",
    )
    gguf = bake(foreign, tmp_path / "x.gguf", "--yarn", 4, "--original-context", 64)
    assert gguf.get("llama.context_length") == 256
    assert "rope_freqs.weight" not in gguf.tensors


def test_replacing_a_scaling_is_told(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = make_llama(tmp_path / "own", rope_parameters=rope)
    result = ggext("convert", folder, tmp_path / "out.gguf", "--yarn", 8)
    assert (
        "the source's own linear scaling by 4 is replaced, not added to"
        in result.output
    )
    assert read_gguf(tmp_path / "out.gguf").get("llama.context_length") == 512


# bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--yarn", "0"],
            "--yarn is 0; the factor multiplies the context and must be 1 or more",
        ),
        (["--yarn", "0.5"], "must be 1 or more"),
        (["--yarn", "-1"], "must be 1 or more"),
        (["--yarn", "nan"], "not a finite number"),
        (["--yarn", "inf"], "not a finite number"),
        (["--yarn", "four"], "'four' is not a number"),
        (["--yarn", "2", "--linear", "2"], "different scalings"),
        (["--rope", "none", "--yarn", "2"], "different scalings"),
        (["--rope", "yarn"], "needs --target-context"),
        (["--rope", "magic"], "'magic' is not one of"),
        (["--yarn", "4", "--target-context", "256"], "exclude each other"),
        (["--beta-fast", "8"], "changes a scaling; name one"),
        (["--target-context", "0"], "0 is 0 tokens; from 1 to"),
    ],
)
def test_usage_errors(
    checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert_refused(
        ggext("convert", checkpoint, tmp_path / "x.gguf", *arguments), message, code=2
    )
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--linear", "2", "--beta-fast", "8"], "does not use beta_fast"),
        (
            ["--yarn", "4", "--attention-factor", "0"],
            "attention_factor is 0; it must be above 0",
        ),
    ],
)
def test_requests_that_mean_nothing(
    checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert_refused(
        ggext("convert", checkpoint, tmp_path / "x.gguf", *arguments), message
    )


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "mamba9"},
            "'mamba9' is not a family that ggext converts; --via-llama-cpp FOLDER",
        ),
        ({"model_type": 7}, "model_type is 7; it must be a string"),
        ({"model_type": None}, "model_type is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "128"}, "hidden_size is '128'; it must be a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be between 1"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers is"),
        (
            {"num_hidden_layers": 3},
            "needs the tensor model.layers.2.input_layernorm.weight, which is not there",
        ),
        ({"intermediate_size": 161}, "has the shape [160, 128]"),
        ({"num_key_value_heads": 3}, "is not a multiple of num_key_value_heads 3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "magic", "factor": 2}},
            "rope type 'magic' is unknown",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": -1}},
            "factor is -1; it must be above 0",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "dynamic NTK"),
        (
            {"partial_rotary_factor": 0.5},
            "16 of 32 dimensions are rotated (partial_rotary_factor)",
        ),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"vocab_size": 10}, "has the shape [320, 128]"),
    ],
)
def test_bad_configs(
    copy: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    edit_config(copy, **values)
    assert_refused(ggext("convert", copy, tmp_path / "x.gguf"), message)
    assert not (tmp_path / "x.gguf").exists()


def test_not_a_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(ggext("convert", empty), "it has no config.json")
    assert_refused(ggext("convert", tmp_path / "nowhere"), "does not exist")
    (empty / "config.json").write_text("{")
    assert_refused(ggext("convert", empty), "is not valid JSON")
    (empty / "config.json").write_text("[1]")
    assert_refused(ggext("convert", empty), "expected a JSON object")


def test_damaged_weights(copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    names = json.loads(whole[8 : 8 + length])

    def refused(data: bytes, message: str) -> None:
        weights.write_bytes(data)
        assert_refused(ggext("convert", copy, tmp_path / "x.gguf"), message)
        assert not (tmp_path / "x.gguf").exists()

    def with_header(header: dict[str, Any]) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    refused(whole[:-100], "the file is truncated")
    refused(whole[:4], "has 4 bytes")
    refused(
        struct.pack("<Q", 1 << 60) + whole[8:],
        "its header claims 1152921504606846976 bytes",
    )
    refused(struct.pack("<Q", 10) + whole[8:], "not valid JSON")
    norm = "model.norm.weight"
    refused(with_header(names | {norm: names[norm] | {"shape": [-1]}}), "malformed")
    refused(with_header(names | {norm: {"dtype": "F32"}}), "malformed")
    refused(
        with_header(names | {norm: names[norm] | {"dtype": "I32"}}), "has dtype I32"
    )
    refused(
        with_header(names | {norm: names[norm] | {"shape": [129]}}),
        "needs 516 bytes and has 512",
    )
    refused(
        with_header({k: v for k, v in names.items() if k != norm}),
        "needs the tensor model.norm.weight",
    )
    weights.unlink()
    assert_refused(ggext("convert", copy, tmp_path / "x.gguf"), "download the weights")


def test_extra_tensors_are_told(copy: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors") | {
        "model.extra": np.zeros(3, np.float32)
    }
    save_file(tensors, copy / "model.safetensors")
    result = ggext("convert", copy, tmp_path / "x.gguf")
    assert (
        "1 tensors are not part of this architecture and were left out: model.extra"
        in result.output
    )


def test_shard_indices(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "sharded", shard="200KB")
    assert ggext("convert", folder, tmp_path / "x.gguf").exit_code == 0
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    first = min(values["weight_map"].values())
    (folder / first).rename(folder / "away")
    assert_refused(ggext("convert", folder, tmp_path / "y.gguf"), f"{first} is missing")
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert_refused(
        ggext("convert", folder, tmp_path / "y.gguf"), "shards must lie next to it"
    )
    index.write_text(json.dumps({"weight_map": 3}))
    assert_refused(
        ggext("convert", folder, tmp_path / "y.gguf"), "weight_map is missing"
    )


def test_outputs(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    bake(checkpoint, out)
    before = out.read_bytes()
    assert_refused(
        ggext("convert", checkpoint, out, "--yarn", 4), "exists; use --force"
    )
    assert out.read_bytes() == before
    bake(checkpoint, out, "--yarn", 4, "--force")
    assert out.read_bytes() != before
    assert_refused(
        ggext("convert", out, out, "--yarn", 2, "--force"), "is the input itself"
    )
    assert_refused(ggext("convert", checkpoint, tmp_path), "is a folder")
    assert_refused(
        ggext("convert", checkpoint, tmp_path / "no" / "x.gguf"),
        "does not exist; make it first",
    )


def test_an_interrupted_conversion_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    from ggext.convert import ConvertOptions, convert

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(ConvertOptions(checkpoint, tmp_path / "x.gguf"), interrupt)
    assert not [p for p in tmp_path.iterdir() if p.name != "home"]


def test_a_damaged_gguf(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    bake(checkpoint, out, "--yarn", 4)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(out.read_bytes()[:-1000])
    for command in (
        ["convert", cut, tmp_path / "y.gguf", "--yarn", 2],
        ["inspect", cut],
        ["verify", cut],
    ):
        assert_refused(ggext(*command), "truncated")


# inspect and verify as commands


def test_inspect_says_what_became_of_each_frequency(
    checkpoint: Path, tmp_path: Path
) -> None:
    bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    result = ggext("inspect", tmp_path / "out.gguf")
    assert result.exit_code == 0
    assert "256 tokens, extended from 64 (×4)" in result.output
    assert "yarn ×4 as folded" in result.output
    assert "interpolated by 4" in result.output
    values = json.loads(ggext("inspect", tmp_path / "out.gguf", "--json").output)
    assert values["rope"]["attention_factor"] == pytest.approx(1 + 0.1 * math.log(4))
    assert {p["treatment"] for p in values["pairs"]} == {
        "kept",
        "blended",
        "interpolated",
    }


@pytest.mark.parametrize("name", ["table.png", "table.svg"])
def test_inspect_plots(checkpoint: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    assert (
        ggext("inspect", tmp_path / "out.gguf", "--plot", tmp_path / name).exit_code
        == 0
    )
    start = (tmp_path / name).read_bytes()[:100]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start
    assert_refused(
        ggext("inspect", tmp_path / "out.gguf", "--plot", tmp_path / "t.doc"),
        "must be one of .png",
        2,
    )


def test_verify_holds_a_file_to_its_recipe(checkpoint: Path, tmp_path: Path) -> None:
    """Level 1 and 2 need no llama.cpp; a key that someone changed is found."""
    from dataclasses import replace

    from ggext.gguf.types import Field
    from ggext.gguf.writer import TensorToWrite, write_gguf

    gguf = bake(checkpoint, tmp_path / "out.gguf", "--yarn", 4)
    result = ggext("verify", tmp_path / "out.gguf")
    assert result.exit_code == 0, result.output
    assert "tokens: exact " in result.output

    def changed(key: str, value: object) -> Result:
        fields = dict(gguf.fields)
        fields[key] = (
            replace(fields[key], value=value) if key in fields else Field.of(value)
        )
        tensors = [
            TensorToWrite(
                t.name,
                t.shape,
                t.type,
                t.nbytes,
                lambda t=t: [gguf.tensor_data(t.name)],
            )  # type: ignore[misc]
            for t in gguf.tensors.values()
        ]
        write_gguf(tmp_path / "changed.gguf", fields, tensors)
        return ggext("verify", tmp_path / "changed.gguf", "--json")

    for key, value in (
        ("llama.rope.scaling.factor", 8.0),
        ("llama.rope.scaling.attn_factor", 1.1386),
        ("llama.rope.scaling.type", "linear"),
        ("llama.rope.freq_base", 10001.0),
        ("llama.context_length", 64),
    ):
        result = changed(key, value)
        assert result.exit_code == 1, key
        assert json.loads(result.stdout)["passed"] is False
    assert_refused(changed("llama.rope.scaling.type", "magic"), "'magic'")


def test_verify_without_a_recipe_holds_a_file_to_its_own_keys(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A file without weights cannot be run, and is read all the same."""
    from ggext.gguf.writer import write_gguf

    gguf = bake(checkpoint, tmp_path / "out.gguf")
    fields = {k: f for k, f in gguf.fields.items() if k != "ggext.recipe"}
    write_gguf(tmp_path / "foreign.gguf", fields, [])
    result = ggext("verify", tmp_path / "foreign.gguf", "--level", "table")
    assert result.exit_code == 0, result.output
    assert "held to its own keys" in " ".join(result.output.split())


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
