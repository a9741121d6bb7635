"""`ggext convert` on what is wrong: requests, configurations, weights, outputs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import assert_refused, bake, ggext
from tiny import make_llama

pytest.importorskip("transformers")


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
