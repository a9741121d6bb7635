"""A gain folded into the query weights: the same logits, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from folded import BETAS, YARN, bake, divergence, floats
from tiny import make_llama
from tiny_gguf import HEAD, N_HEADS, write_random

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError, RopeError
from ggext.gguf.open import read_gguf
from ggext.rope.keys import QUERY_SCALE
from ggext.rope.scaling import RopeGeometry, RopeScaling

pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")


PARITY: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "keys": (YARN, {}),
    "biases": (YARN, {"attention_bias": True}),
    "tensor": (
        RopeScaling(
            "yarn", factor=4, beta_fast=16, beta_slow=0.1, attention_factor=1.3
        ),
        {},
    ),
    "linear-gain": (
        RopeScaling("linear", factor=4, attention_factor=1.2),
        {"num_key_value_heads": 4},
    ),
    "none-gain": (RopeScaling("none", attention_factor=1.2), {}),
}


@pytest.mark.parametrize(("scaling", "config"), PARITY.values(), ids=PARITY)
def test_folded_logits_equal_transformers(
    tmp_path: Path, scaling: RopeScaling, config: dict[str, Any]
) -> None:
    from ggext.verify import verify

    model = make_llama(tmp_path / "model", **config)
    bake(model, tmp_path / "out.gguf", scaling)
    report = verify(tmp_path / "out.gguf", model)
    assert report.passed, report
    logits = [c.value for c in report.checks if c.level == "logits"]
    assert len(logits) == (1 if scaling.method == "none" else 2)
    assert max(logits) <= 1e-6


FOLDED = [
    ("llama", True),
    ("mistral3", False),
    ("qwen2", False),
    ("qwen2", True),
    ("qwen3", False),
    ("qwen3moe", False),
    ("qwen2moe", False),
    ("afmoe", False),
    ("apertus", False),
    ("arcee", False),
    ("cohere2", False),
    ("ernie4_5", False),
    ("falcon", False),
    ("falcon-h1", False),
    ("glm4", False),
    ("gptneox", False),
    ("granite", False),
    ("laguna", False),
    ("nemotron", False),
    ("olmo2", False),
    ("phi2", False),
    ("seed_oss", False),
    ("smollm3", False),
    ("starcoder2", False),
    ("dots1", False),
    ("ernie4_5-moe", False),
    ("glm4moe", False),
    ("granitemoe", False),
    ("olmoe", False),
]


@pytest.mark.parametrize(("arch", "fused"), FOLDED)
def test_every_architecture_folds_where_its_queries_are_made(
    tmp_path: Path, arch: str, fused: bool
) -> None:
    """Against the same model with the gain in its keys."""
    model = write_random(tmp_path / "model.gguf", arch, fused=fused)
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys")
    bake(model, tmp_path / "folded.gguf", YARN)
    wrong = bake(
        model,
        tmp_path / "wrong.gguf",
        RopeScaling("yarn", factor=4, attention_factor=1.0),
        "keys",
    )
    assert divergence(keys.path, tmp_path / "folded.gguf") <= 1e-6
    assert divergence(keys.path, wrong.path) > 1e-4


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("hunyuan-dense", "after their rotation, which takes the gain away"),
        ("llama4", "after their rotation, which takes the gain away"),
        ("granitehybrid", "layer 0 has none of"),
        ("lfm2", "layer 0 has none of"),
        ("qwen35", "llama.cpp never shifts a context of qwen35"),
        ("qwen3next", "layer 0 has none of"),
        ("minicpm3", "layer 0 has none of"),
        ("stablelm", "has a row for each head"),
    ],
)
def test_where_a_gain_cannot_be_folded_it_is_refused(
    tmp_path: Path, arch: str, reason: str
) -> None:
    with pytest.raises(RopeError, match=reason):
        bake(
            write_random(tmp_path / "model.gguf", arch), tmp_path / "folded.gguf", YARN
        )


def test_only_the_rotated_query_rows_are_scaled(tmp_path: Path) -> None:
    model = read_gguf(write_random(tmp_path / "model.gguf", "qwen2", fused=True))
    gguf = bake(model.path, tmp_path / "folded.gguf", YARN)
    scale = gguf.get(f"qwen2.{QUERY_SCALE}")
    for name in ("blk.1.attn_qkv.weight", "blk.1.attn_qkv.bias"):
        before, after = floats(model, name), floats(gguf, name)
        queries = N_HEADS * HEAD
        assert np.allclose(after[:queries], before[:queries] * scale, rtol=1e-7)
        assert np.array_equal(after[queries:], before[queries:])
    changed = [
        n
        for n in model.tensors
        if bytes(model.tensor_data(n)) != bytes(gguf.tensor_data(n))
    ]
    assert changed == [
        f"blk.{i}.attn_qkv.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_partial_rotation_scales_the_first_dimensions_of_each_head(
    tmp_path: Path,
) -> None:
    from ggext.convert.fold import fold_query
    from ggext.convert.sources import open_source

    source = open_source(write_random(tmp_path / "model.gguf", "qwen2"))
    geometry = RopeGeometry(HEAD // 2, HEAD, 10000.0, "neox", 64)

    def keys(heads: Any, layers: int) -> dict[str, Any]:
        return {"attention.head_count": heads, "block_count": layers}

    folded = fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 2), 1.3)
    scale = next(t.row_scale for t in folded if t.name == "blk.0.attn_q.weight")
    assert scale is not None
    assert scale.reshape(N_HEADS, HEAD).tolist() == [[1.3] * 8 + [1.0] * 8] * N_HEADS
    with pytest.raises(RopeError, match="layer 2 has none of"):
        fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 3), 1.3)
    with pytest.raises(
        RopeError, match="at most 512 layers"
    ):  # at once, however many the file claims
        fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 1 << 32), 1.3)
    with pytest.raises(RopeError, match="layers that are alike"):
        fold_query(source.tensors, "qwen2", geometry, keys([4, 2], 2), 1.3)


def test_a_folded_file_is_unfolded_before_the_next_bake(
    checkpoint: Path, tmp_path: Path
) -> None:
    plain = bake(checkpoint, tmp_path / "plain.gguf", None, None)
    folded = bake(checkpoint, tmp_path / "folded.gguf", YARN)
    assert "folded" in folded.get("ggext.recipe")
    back = bake(folded.path, tmp_path / "back.gguf", RopeScaling("none"), None)
    again = bake(folded.path, tmp_path / "again.gguf", RopeScaling("yarn", factor=2))
    direct = bake(checkpoint, tmp_path / "direct.gguf", RopeScaling("yarn", factor=2))
    for one, other in ((back, plain), (again, direct)):
        for key in one.fields.keys() | other.fields.keys():
            assert key == "ggext.recipe" or one.fields[key] == other.fields[key]
        for name in plain.tensors:
            # float32 twice: at most one unit in the last place, and nothing but the queries is
            # touched
            tolerance = 2**-22 if "attn_q." in name else 0
            assert np.allclose(
                floats(one, name), floats(other, name), rtol=tolerance, atol=0
            ), name


def test_16_bit_weights_come_back_within_their_rounding(
    checkpoint: Path, tmp_path: Path
) -> None:
    for kind, unit in (("f16", 2**-11), ("bf16", 2**-8)):
        plain = bake(checkpoint, tmp_path / f"{kind}.gguf", None, None, type=kind)
        folded = bake(plain.path, tmp_path / f"{kind}-folded.gguf", YARN)
        back = bake(
            folded.path, tmp_path / f"{kind}-back.gguf", RopeScaling("none"), None
        )
        name = "blk.0.attn_q.weight"
        raw = [np.frombuffer(g.tensor_data(name), np.uint16) for g in (plain, back)]
        one, other = (
            r.view("<f2").astype("f4")
            if kind == "f16"
            else (r.astype("<u4") << 16).view("<f4")
            for r in raw
        )
        assert np.abs(one - other).max() <= 2 * unit * np.abs(one).max()


def test_another_form_of_the_same_scaling(checkpoint: Path, tmp_path: Path) -> None:
    """--encoding alone rewrites what a GGUF file says, also one that another program made."""
    from ggext.gguf.writer import TensorToWrite, write_gguf

    keys = bake(
        checkpoint,
        tmp_path / "keys.gguf",
        RopeScaling("yarn", factor=4, attention_factor=1.3),
        "keys",
    )
    fields = {k: f for k, f in keys.fields.items() if k != "ggext.recipe"}
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [keys.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in keys.tensors.values()
    ]
    write_gguf(tmp_path / "foreign.gguf", fields, tensors)
    for source in ("keys", "foreign"):
        folded = bake(
            tmp_path / f"{source}.gguf", tmp_path / f"{source}-folded.gguf", None
        )
        assert folded.get("llama.context_length") == 256
        assert divergence(keys.path, folded.path) <= 1e-6


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_XS"]
)
def test_quantized_files_are_folded_in_their_block_scales(
    tmp_path: Path, kind: str
) -> None:
    """The cost in KL is far below what the quantization itself cost."""
    model = make_llama(
        tmp_path / "model",
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
    )
    exact = bake(model, tmp_path / "f32.gguf", YARN, "keys")
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys", type=kind)
    result = CliRunner().invoke(
        main,
        ["convert", str(keys.path), str(tmp_path / "f.gguf"), "--encoding", "folded"],
    )
    assert result.exit_code == 0, result.output
    assert "roll their context: safe (folded)" in result.output
    assert "folding: rounding of the query weights rms" in result.output
    cost, quantizing = (
        divergence(keys.path, tmp_path / "f.gguf"),
        divergence(exact.path, keys.path),
    )
    assert cost < quantizing / 10
    assert divergence(exact.path, tmp_path / "f.gguf") < 1.2 * quantizing


def test_a_checkpoint_is_folded_before_it_is_quantized(
    checkpoint: Path, tmp_path: Path
) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    exact = bake(checkpoint, tmp_path / "f32.gguf", YARN)
    name = "blk.0.attn_q.weight"
    for kind, out in (
        ("q8_0", GGMLQuantizationType.Q8_0),
        ("f16", GGMLQuantizationType.F16),
    ):
        gguf = bake(checkpoint, tmp_path / f"{kind}.gguf", YARN, type=kind)
        raw = np.frombuffer(gguf.tensor_data(name), np.uint8).reshape(128, -1)
        values = dequantize(raw if kind == "q8_0" else raw.view("<f2"), out)
        assert np.abs(values - floats(exact, name)).max() <= np.abs(values).max() * (
            1 / 254 + 2**-11
        )


def test_encoding_on_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        return (
            CliRunner()
            .invoke(
                main, ["convert", str(checkpoint), str(tmp_path / "x.gguf"), *arguments]
            )
            .output
        )

    assert "encoding: folded, " in run("--yarn", "4", "--dry-run")
    assert ", safe to roll" in run("--yarn", "4", "--dry-run")
    assert "encoding: folded" in run("--yarn", "4", "--encoding", "folded", "--dry-run")
    assert "not safe to roll" in run("--yarn", "4", "--encoding", "keys", "--dry-run")
    assert "is not one of" in run("--yarn", "4", "--encoding", "magic")
    assert "nothing for --encoding folded to do: keys says it all" in run(
        "--linear", "4", "--encoding", "folded"
    )
    for encoding, words in (
        ("folded", "attention factor 1.13863\n              safe to roll"),
        ("keys", "1.13863\n              not safe to roll"),
    ):
        bake(checkpoint, tmp_path / f"{encoding}.gguf", YARN, encoding)  # type: ignore[arg-type]
        assert (
            words
            in CliRunner()
            .invoke(main, ["inspect", str(tmp_path / f"{encoding}.gguf")])
            .output
        )
    with pytest.raises(GgextError, match="cannot run yarn"):
        convert(ConvertOptions(checkpoint, tmp_path / "y.gguf", BETAS, encoding="keys"))


def test_clipped_queries_are_not_scaled(tmp_path: Path) -> None:
    """Folding into what is clipped afterwards changed OLMo's logits by a KL of 0.1."""
    from tiny import make_model

    model = make_model(tmp_path / "olmo", "olmo", clip_qkv=1.5)
    out = tmp_path / "out.gguf"
    asked = ConvertOptions(model, out, RopeScaling("yarn", factor=4))
    planned = convert(asked)
    assert planned.encoding is not None
    assert planned.encoding.name == "keys"
    assert "clips its queries" in planned.why_not_folded
    with pytest.raises(RopeError, match="clips its queries"):
        convert(
            ConvertOptions(model, tmp_path / "b.gguf", asked.rope, encoding="folded")
        )
