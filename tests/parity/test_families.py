"""Each family: a tiny random model of its shape, converted, and its logits in llama.cpp against
transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_rows import ROWS, Row
from random_models import gelu_of_ggml
from renamed import rename
from tiny import make_model

from ggext.convert import ConvertOptions, convert, plan
from ggext.inspect import inspect
from ggext.rope.capabilities import CAPABILITIES, ROTATES, UNROTATED
from ggext.rope.families import FULL, KIND_NAMES
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_logits_equal_transformers(row: Row, tmp_path: Path) -> None:
    judge = checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    if row.renamed:
        checkpoint = rename(judge, tmp_path / "renamed", row.renamed)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, row.rope))
    report = verify(out, judge, tolerance=row.bound)
    logits = {
        check.quantity: check.value
        for check in report.checks
        if check.level == "logits"
    }
    assert len(logits) == 1 + row.beyond, "in the window and beyond it"
    assert max(logits.values()) <= row.bound, logits
    if row.renamed:  # the judge's own architecture may pair dimensions otherwise
        report = verify(out, levels=["table", "kernel", "graph", "shift"])
    assert report.passed is row.exact, report


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("falcon", 5e-9),
        ("gemma2", 1e-7),
        ("gemma2-27b", 5e-8),
        ("gemma3_text", 5e-7),
        ("gemma3_text-linear", 5e-7),
        ("gemma4_text", 2e-7),
        ("gpt_neox", 5e-9),
        ("gpt_neox-serial", 5e-9),
        ("phi", 5e-9),
        ("starcoder2", 5e-9),
    ],
)
def test_the_rest_is_the_activation(
    name: str, rest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ggml's own GELU in transformers the logits agree as closely as those of other
    families."""
    from torch import nn
    from transformers.activations import ACT2FN

    class Gelu(nn.Module):
        forward = staticmethod(gelu_of_ggml)

    row = ROWS[name]
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out, row.rope))
    found = []
    for _ in range(2):
        report = verify(out, checkpoint, levels=["logits"])
        found.append(max(check.value for check in report.checks))
        for activation in ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"):
            monkeypatch.setitem(ACT2FN, activation, Gelu)
    assert found[1] <= rest < found[0]


def test_the_rest_is_rounding_in_layers_that_choose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's flash attention has keys and values in float16 there: with that in transformers
    the logits agree as closely as those of other families."""
    import transformers.models.minimax_m3_vl.modeling_minimax_m3_vl as judged

    usual = judged.eager_attention_forward

    def rounded(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any):
        if module.indexer is None:
            key, value = (states.half().float() for states in (key, value))
        return usual(module, query, key, value, *rest, **more)

    row = ROWS["minimax_m3_vl-dense"]
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    out = tmp_path / "out.gguf"
    convert(ConvertOptions(checkpoint, out))
    found = []
    for attention in (usual, rounded):
        monkeypatch.setattr(judged, "eager_attention_forward", attention)
        report = verify(out, checkpoint, levels=["logits"])
        found.append(max(check.value for check in report.checks))
    assert found[1] <= 1e-7 < 1e-6 < found[0], found


def _metadata(checkpoint: Path) -> dict[str, Any]:
    planned = plan(ConvertOptions(checkpoint, checkpoint.parent / "planned.gguf"))
    names = {f"tensor {t.name}": (t.shape, t.type) for t in planned.tensors}
    return {key: field.value for key, field in planned.fields.items()} | names


_WITH_A_CLASS = {name: row for name, row in ROWS.items() if not row.renamed}


@pytest.mark.parametrize("row", _WITH_A_CLASS.values(), ids=_WITH_A_CLASS)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(
    row: Row, tmp_path: Path
) -> None:
    """Every key that has the value of transformers' class is taken out of config.json: nothing
    changes."""
    from transformers import AutoConfig

    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    path = checkpoint / "config.json"
    whole = json.loads(path.read_text())
    values = whole.get("text_config", whole)
    if "rope_parameters" not in row.config:  # the class's own base and share of a head
        values.pop("rope_parameters", None)
        path.write_text(json.dumps(whole))
    full = _metadata(checkpoint)
    of_class = type(AutoConfig.for_model(row.model_type).get_text_config())
    usual = json.loads(of_class().to_json_string(use_diff=False))
    kept = ("model_type", "num_key_value_heads")  # the tensors' shapes would tell
    silent = {
        k: v for k, v in values.items() if k in kept or k not in usual or usual[k] != v
    }
    assert len(silent) < len(values)
    path.write_text(
        json.dumps(whole | {"text_config": silent} if whole is not values else silent)
    )
    assert _metadata(checkpoint) == full
    arch = full["general.architecture"]
    if f"{arch}.rope.freq_base" not in full:
        assert arch in UNROTATED or full[f"{arch}.{ROTATES}"] is False
        return
    rope = AutoConfig.from_pretrained(checkpoint).get_text_config().rope_parameters
    names = KIND_NAMES.get(arch, {})
    rope = rope.get(names.get(FULL, FULL), rope)
    written = full[f"{arch}.{CAPABILITIES[arch].base_key}"]
    assert (
        written == pytest.approx(rope["rope_theta"]) or "alpha" in rope
    )  # which makes the base larger


@pytest.mark.parametrize(
    ("model_type", "outer"),
    [
        ("ministral3", "mistral3"),
        ("mistral", "mistral3"),
        ("mistral4", "mistral3"),
        ("llama4_text", "llama4"),
        ("gemma4_text", "gemma4"),
    ],
)
def test_the_text_of_a_model_that_sees_too(
    model_type: str, outer: str, tmp_path: Path
) -> None:
    """Its names have a prefix, and its configuration is nested."""
    from safetensors.numpy import load_file, save_file

    row = next(row for row in ROWS.values() if row.model_type == model_type)
    checkpoint = make_model(tmp_path / "model", model_type, **row.config)
    text = _metadata(checkpoint)
    path, weights = checkpoint / "config.json", checkpoint / "model.safetensors"
    path.write_text(
        json.dumps({"model_type": outer, "text_config": json.loads(path.read_text())})
    )
    save_file(
        {
            f"language_model.{name}": values
            for name, values in load_file(weights).items()
        },
        weights,
    )
    seeing = _metadata(checkpoint)
    if model_type != "mistral":
        assert seeing == text
    convert(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    assert verify(tmp_path / "out.gguf", levels=["table", "graph"]).passed


@pytest.mark.parametrize("model_type", ["mistral", "starcoder2"])
def test_a_window_that_llama_cpp_has_not_limits_the_context(
    model_type: str, tmp_path: Path
) -> None:
    checkpoint = make_model(
        tmp_path / "model", model_type, max_position_embeddings=256, sliding_window=96
    )
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(checkpoint, out))
    assert any("sliding_window is 96" in note for note in planned.notes)
    report = verify(out, checkpoint)
    assert report.context == 96
    assert report.passed, report


@pytest.mark.parametrize(
    ("model_type", "layers", "safe"),
    [("smollm3", 4, False), ("smollm3", 3, True), ("cohere2", 4, False)],
)
def test_layers_that_do_not_rotate_make_a_shift_wrong(
    model_type: str, layers: int, safe: bool, tmp_path: Path
) -> None:
    """the pinned llama.cpp turns all layers' cached keys in a shift."""
    checkpoint = make_model(
        tmp_path / "model",
        model_type,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
    )
    out = tmp_path / "out.gguf"
    planned = convert(ConvertOptions(checkpoint, out, RopeScaling("linear", factor=4)))
    report = verify(out, levels=["shift"])
    assert report.shift_safe is safe
    assert all(row.k_norm == pytest.approx(1, abs=1e-6) for row in report.shifts)
    assert safe or "layers that have no RoPE" in report.checks[0].why
    assert planned.encoding is not None
    assert not planned.encoding.shift_safe  # of the architecture, whatever its size
    assert not inspect(out).shift_safe
