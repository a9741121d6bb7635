"""Models whose layers do not all rotate alike, and DeepSeek's scale of the scores: tables, proof
and folding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, Plan, convert
from ggext.errors import CheckpointError, GgextError, RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope import methods
from ggext.rope.config import read_rope
from ggext.rope.decode import (
    LOG_MULTIPLIER,
    SLIDING_BASE,
    decode,
    decode_sliding,
    layer_kinds,
    score_scale,
)
from ggext.rope.encode import encode
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.verify import Report, verify

GEMMA3 = RopeGeometry(64, 64, 1e6, "neox", 256, sliding_base=1e4)
OLMO3 = RopeGeometry(64, 64, 5e5, "neox", 256, sliding_base=5e5)
LATENT = RopeGeometry(64, 64, 1e4, "norm", 4096)
WINDOW = {"attention.sliding_window": 32}
YARN = RopeScaling("yarn", factor=4)


# tables


@pytest.mark.parametrize(
    "scaling", [YARN, RopeScaling("linear", factor=8), RopeScaling("ntk", factor=4)]
)
def test_gemma3_keeps_the_sliding_layers_as_they_are(scaling: RopeScaling) -> None:
    encoding = encode(scaling, GEMMA3, "gemma3")
    assert (encoding.name, encoding.keys[SLIDING_BASE]) == ("keys", 1e4)
    assert encoding.exactness.is_exact
    sliding = decode_sliding(encoding.keys | WINDOW, "gemma3")
    assert sliding is not None
    assert sliding.inv_freq == pytest.approx(methods.theta(GEMMA3, 1e4))
    assert sliding.attention_factor == 1.0


@pytest.mark.parametrize(
    ("scaling", "geometry", "arch", "message"),
    [
        (
            RopeScaling("yarn", factor=4, attention_factor=1.0),
            GEMMA3,
            "gemma3",
            "gain error of 0.12",
        ),
        (
            RopeScaling("linear", factor=4, attention_factor=1.2),
            GEMMA3,
            "gemma3",
            "gain error of 0.2",
        ),
        (RopeScaling("ntk", factor=4), OLMO3, "olmo2", "cannot run ntk"),
        (
            YARN,
            RopeGeometry(64, 64, 5e5, "neox", 256, sliding_base=1e4),
            "olmo2",
            "cannot run yarn",
        ),
        (YARN, GEMMA3, "qwen2", "cannot run yarn"),
    ],
)
def test_what_would_change_the_sliding_layers_is_refused(
    scaling: RopeScaling, geometry: RopeGeometry, arch: str, message: str
) -> None:
    with pytest.raises(RopeError, match=message):
        encode(scaling, geometry, arch)


def test_olmo3_scales_the_other_layers_by_any_gain() -> None:
    encoding = encode(
        RopeScaling("yarn", factor=4, attention_factor=1.3), OLMO3, "olmo2"
    )
    assert encoding.exactness.is_exact
    assert SLIDING_BASE not in encoding.keys


@pytest.mark.parametrize(
    ("arch", "keys", "expected"),
    [
        ("gemma3", {"block_count": 7} | WINDOW, "uuuuusu"),
        ("gemma3", {"block_count": 7}, "sssssss"),
        (
            "gemma3",
            {"block_count": 3, "attention.sliding_window_pattern": [False, True, False]}
            | WINDOW,
            "sus",
        ),
        (
            "gemma3",
            {"block_count": 4, "attention.sliding_window_pattern": 2} | WINDOW,
            "usus",
        ),
        ("olmo2", {"block_count": 5} | WINDOW, "uuusu"),
        ("gemma2", {"block_count": 2} | WINDOW, "ss"),
        ("exaone4", {"block_count": 8} | WINDOW, "ssssssss"),
        ("exaone4", {"block_count": 64}, "sss-" * 16),
        ("smollm3", {"block_count": 5}, "sss-s"),
    ],
)
def test_how_each_layer_rotates(arch: str, keys: dict[str, Any], expected: str) -> None:
    letters = {"s": "scaled", "u": "unscaled", "-": "unrotated"}
    assert layer_kinds(keys, arch) == tuple(letters[letter] for letter in expected)


def test_a_pattern_of_the_wrong_length_is_refused() -> None:
    keys = {"block_count": 3, "attention.sliding_window_pattern": [True]} | WINDOW
    with pytest.raises(RopeError, match="has 1 values; the file has 3 layers"):
        layer_kinds(keys, "olmo2")


def test_settings_of_the_sliding_layers_that_llama_cpp_has_not_are_refused() -> None:
    config = {
        "model_type": "olmo3",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 1e4,
            },
        },
    }
    with pytest.raises(
        RopeError,
        match="sliding_attention layers rotate 32 of 32 dimensions with linear scaling",
    ):
        read_rope(config, "neox")


# DeepSeek

DEEPSEEK = {
    "v3": RopeScaling("yarn", factor=40, mscale=1.0, mscale_all_dim=1.0),
    "v2-lite": RopeScaling("yarn", factor=40, mscale=0.707, mscale_all_dim=0.707),
    "no-mscale": RopeScaling("yarn", factor=4),
    "gain-1": RopeScaling("yarn", factor=4, attention_factor=1.0),
    "both": RopeScaling("yarn", factor=8, mscale=1.0, mscale_all_dim=0.8),
    "linear": RopeScaling("linear", factor=4),
    "ntk": RopeScaling("ntk", factor=4),
}


@pytest.mark.parametrize("scaling", DEEPSEEK.values(), ids=DEEPSEEK)
def test_gain_and_scale_of_the_scores(scaling: RopeScaling) -> None:
    encoding = encode(scaling, LATENT, "deepseek2")
    assert encoding.exactness.is_exact
    assert score_scale(encoding.keys, "deepseek2") == pytest.approx(
        methods.score_scale(scaling), rel=1e-6
    )
    table = decode(encoding.keys, {}, "deepseek2")
    assert table.attention_factor == pytest.approx(
        methods.make_table(scaling, LATENT).attention_factor, rel=1e-6
    )


def test_the_keys_of_deepseek_3_are_upstreams() -> None:
    keys = encode(DEEPSEEK["v3"], LATENT, "deepseek2").keys
    assert keys[LOG_MULTIPLIER] == pytest.approx(0.1)
    assert keys["rope.scaling.attn_factor"] == 1.0


def test_a_gain_cannot_be_folded_into_latent_attention() -> None:
    with pytest.raises(RopeError, match="has no rows of its own to fold a gain into"):
        encode(DEEPSEEK["no-mscale"], LATENT, "deepseek2", "folded")


# files

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

SMALL = {"hidden_size": 64, "intermediate_size": 64, "sliding_window": 32}
LATENT_MODEL = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "n_group": 1,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32},
    ),
    "olmo3": ("olmo3", {"num_hidden_layers": 4}),
    "exaone4": ("exaone4", {"num_hidden_layers": 64, "initializer_range": 0.1}),
    "phi": ("phi3", {"sliding_window": None}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3": ("deepseek_v3", LATENT_MODEL),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints by the names in ``MODELS``."""
    folder = tmp_path_factory.mktemp("models")
    for name, (model_type, config) in MODELS.items():
        make_model(folder / name, model_type, **SMALL | config)
    return folder


def edited(source: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a checkpoint whose config.json says something else."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


def bake(
    checkpoint: Path, out: Path, rope: RopeScaling | None = YARN, **options: Any
) -> Plan:
    return convert(ConvertOptions(checkpoint, out, rope, **options))


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


def copied(source: Path, out: Path, *, without: str = "", **changes: Any) -> Path:
    """The same tensors with other keys of the architecture."""
    gguf = read_gguf(source)
    kept = {key: field for key, field in gguf.fields.items() if key != without}
    fields = kept | {
        f"{gguf.arch}.{key.replace('__', '.')}": Field.of(value)
        for key, value in changes.items()
    }
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(out, fields, tensors)
    return out


def failed(report: Report) -> set[str]:
    return {check.quantity for check in report.checks if not check.passed}


def test_a_wrong_base_of_the_sliding_layers_fails(models: Path, tmp_path: Path) -> None:
    bake(models / "gemma3", tmp_path / "right.gguf")
    wrong = copied(
        tmp_path / "right.gguf", tmp_path / "wrong.gguf", rope__freq_base_swa=1e6
    )
    assert verify(tmp_path / "right.gguf", levels=["table", "graph"]).passed
    report = verify(wrong, levels=["table", "graph"])
    assert "sliding layers: frequency error" in failed(report)
    assert "frequency executed, relative error" in failed(report)
    worst = next(
        check
        for check in report.checks
        if check.quantity == "frequency executed, relative error"
    )
    assert worst.detail.startswith("Qcur-0")
    assert "base 10000 wanted, 1000000 executed" in worst.why


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_which_layers_slide_if_nothing_is_said(
    models: Path, tmp_path: Path, name: str
) -> None:
    """As in upstream's files of Gemma 3: the live graph is the judge."""
    bake(models / name, tmp_path / "said.gguf")
    said = read_gguf(tmp_path / "said.gguf")
    pattern = f"{said.arch}.attention.sliding_window_pattern"
    silent = copied(tmp_path / "said.gguf", tmp_path / "silent.gguf", without=pattern)
    assert pattern not in read_gguf(silent).fields
    report = verify(silent, levels=["table", "graph"])
    assert report.passed, report.checks
    assert "sliding layers: frequency error" in {
        check.quantity for check in report.checks
    }


def test_layers_that_must_not_rotate_do_not(models: Path, tmp_path: Path) -> None:
    bake(models / "exaone4", tmp_path / "out.gguf")
    report = verify(tmp_path / "out.gguf", levels=["graph"])
    assert report.passed
    assert "48 of 64 layers rotate" in [check.detail for check in report.checks]


def test_a_layer_that_rotates_and_must_not_fails(models: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from ggext.proof.graph import check_graph, executed_by_node, observe
    from ggext.runtime.engine import Model
    from ggext.verify import what_is_wanted

    bake(models / "exaone4", tmp_path / "out.gguf")
    gguf = read_gguf(tmp_path / "out.gguf")
    wanted = what_is_wanted(gguf, None)
    other = replace(wanted, layers=("unrotated", *wanted.layers[1:]))
    with Model.open(gguf.path) as model:
        found = observe(model, other, 64)
    checks = check_graph(gguf, found, executed_by_node(found), gpu=False)
    wrong = [check for check in checks if not check.passed]
    assert any(
        "48 of 64 layers rotate; layer 0 is not as wanted" in check.detail
        for check in wrong
    )


def test_a_wrong_scale_of_the_scores_fails(models: Path, tmp_path: Path) -> None:
    """Upstream's key for mscale_all_dim 1 in a file whose checkpoint has none."""
    bake(models / "deepseek_v3", tmp_path / "right.gguf")
    wrong = copied(
        tmp_path / "right.gguf",
        tmp_path / "wrong.gguf",
        rope__scaling__yarn_log_multiplier=0.1,
    )
    assert verify(tmp_path / "right.gguf", levels=["table"]).passed
    assert failed(verify(wrong, levels=["table"])) == {
        "scale of the scores, relative error"
    }


def test_kimi_k2_is_right_in_our_contexts(models: Path, tmp_path: Path) -> None:
    """Betas on an architecture that reads none: auto chooses runtime, and says what other programs
    make of it."""
    own = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 1e4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
    }
    change = {
        "model_type": "kimi_k2",
        "rope_parameters": own,
        "max_position_embeddings": 2048,
    }
    checkpoint = edited(models / "deepseek_v3", tmp_path / "kimi", change)
    plan = bake(checkpoint, tmp_path / "out.gguf", None)
    assert plan.encoding is not None
    assert plan.encoding.name == "runtime"
    assert plan.encoding.exactness.is_exact
    assert plan.encoding.elsewhere is not None
    assert plan.encoding.elsewhere.frequency_error > 0.1
    report = verify(tmp_path / "out.gguf", levels=["table", "graph"])
    assert report.passed, report.checks
    assert any("other llama.cpp programs" in note for note in report.notes)


def test_a_model_that_sees_too(models: Path, tmp_path: Path) -> None:
    """What concerns text is converted; the names have a prefix, and the configuration is nested."""
    from safetensors.numpy import load_file, save_file

    checkpoint = edited(models / "gemma3", tmp_path / "seeing", {})
    text = json.loads((checkpoint / "config.json").read_text())
    outer = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"hidden_size": 8},
    }
    (checkpoint / "config.json").write_text(json.dumps(outer))
    tensors = load_file(checkpoint / "model.safetensors")
    prefixed = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in tensors.items()
    }
    save_file(
        prefixed | {"model.vision_tower.x": np.zeros(3, "<f4")},
        checkpoint / "model.safetensors",
    )
    plan = bake(checkpoint, tmp_path / "seeing.gguf")
    assert any(
        "1 tensors are not part of this architecture" in note for note in plan.notes
    )
    bake(models / "gemma3", tmp_path / "text.gguf")
    one, other = read_gguf(tmp_path / "seeing.gguf"), read_gguf(tmp_path / "text.gguf")
    assert {n: bytes(one.tensor_data(n)) for n in one.tensors} == {
        n: bytes(other.tensor_data(n)) for n in other.tensors
    }
    assert one.arch_keys() == other.arch_keys()


def test_a_range_that_llama_cpp_rounds_is_told(models: Path, tmp_path: Path) -> None:
    """gpt-oss's own YaRN: convert prints the error, verify fails and says why."""
    from ggext.cli.convert_report import describe

    own = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 150000.0,
    }
    change = {
        "rope_parameters": own | {"truncate": False},
        "max_position_embeddings": 256,
    }
    plan = bake(
        edited(models / "gpt_oss", tmp_path / "own", change),
        tmp_path / "out.gguf",
        None,
    )
    assert plan.encoding is not None
    assert not plan.encoding.exactness.is_exact
    assert any("not exact" in line for line in describe(plan))
    report = verify(tmp_path / "out.gguf", levels=["table", "graph"])
    assert not report.passed
    assert any("llama.cpp always rounds it" in check.why for check in report.checks)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "gemma2",
            {"query_pre_attn_scalar": 64},
            "query_pre_attn_scalar is 64; .* divides the scores by √32",
        ),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        (
            "gemma2",
            {"tie_word_embeddings": False},
            "has no output matrix but the embedding",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "does not cap the scores"),
        ("gemma3", {"use_bidirectional_attention": True}, "attends to what was before"),
        (
            "gemma3",
            {"layer_types": [{}] * 7},
            "layer_types must name .* for each of 7 layers",
        ),
        (
            "gemma3",
            {"layer_types": ["full_attention"]},
            "layer_types must name .* for each of 7 layers",
        ),
        ("exaone4", {"sliding_window": None}, "sliding_window is None in 64 layers"),
        (
            "exaone4",
            {"layer_types": None, "sliding_window_pattern": "LGLG"},
            "sliding_window_pattern 'LGLG'",
        ),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"rope_interleave": False}, "rotates neighbours"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        (
            "deepseek_v3",
            {"moe_layer_freq": 2},
            "has experts in every layer after the first ones",
        ),
        (
            "deepseek_v3",
            {"num_hidden_layers": 27},
            "takes such a model for one without it",
        ),
        (
            "deepseek_v3",
            {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"},
            "groups of experts",
        ),
        (
            "deepseek_v3",
            {"model_type": "deepseek_v2", "topk_method": "greedy"},
            "norm_topk_prob is True",
        ),
        ("gpt_oss", {"attention_bias": False}, "has biases"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    models: Path, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    checkpoint = edited(models / name, tmp_path / "model", change)
    with pytest.raises(GgextError, match=message) as caught:
        bake(checkpoint, tmp_path / "out.gguf")
    assert isinstance(caught.value, CheckpointError)


def test_the_short_form_of_a_pattern(models: Path, tmp_path: Path) -> None:
    checkpoint = edited(
        models / "exaone4",
        tmp_path / "m",
        {"layer_types": None, "sliding_window_pattern": "LLLG"},
    )
    bake(checkpoint, tmp_path / "out.gguf")
    assert layer_kinds(read_gguf(tmp_path / "out.gguf").arch_keys(), "exaone4")[:5] == (
        "scaled",
        "scaled",
        "scaled",
        "unrotated",
        "scaled",
    )


def test_the_gain_of_the_graph_is_the_attention_factor(
    models: Path, tmp_path: Path
) -> None:
    """deepseek2 with a gain of its own: the kernel applies it to the rotated part alone."""
    bake(models / "deepseek_v3", tmp_path / "out.gguf")
    report = verify(
        tmp_path / "out.gguf",
        models / "deepseek_v3",
        levels=["table", "graph", "logits"],
    )
    assert report.passed, report.checks
    gain = next(
        check
        for check in report.checks
        if check.quantity == "gain executed, relative error"
    )
    assert f"{1 + 0.1 * math.log(4):.7g}" in gain.detail
