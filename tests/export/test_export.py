"""A GGUF file back to a checkpoint: bit-equal weights, the same logits, the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_model

from ggext.checkpoint.named import DEMO_MODEL
from ggext.checkpoint.safetensors import bfloat16_values
from ggext.checkpoint.weights import read_tensors
from ggext.convert import ConvertOptions, convert
from ggext.errors import GgufError, OutputError
from ggext.export import ExportOptions, export
from ggext.gguf.open import read_gguf
from ggext.rope.scaling import RopeScaling

pytest.importorskip("transformers", reason="the extra reference is not installed")
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 6,
    },
}


@pytest.fixture
def roundtrip(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A checkpoint and what comes back of its file."""

    def make(
        family: str, dtype: str = "float32", **convert_options: Any
    ) -> tuple[Path, Path]:
        folder = make_model(tmp_path / "model", family, dtype=dtype, **FAMILIES[family])
        file, back = tmp_path / "model.gguf", tmp_path / "back"
        convert(ConvertOptions(folder, file, **convert_options))
        export(ExportOptions(file, back))
        return folder, back

    return make


def values(folder: Path) -> dict[str, Any]:
    found = {}
    for name, tensor in read_tensors(folder).items():
        data = tensor.array()
        found[name] = (
            bfloat16_values(data) if tensor.dtype == "BF16" else data.astype(np.float32)
        )
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_come_back(
    roundtrip: Callable[..., tuple[Path, Path]], family: str, dtype: str
) -> None:
    folder, back = roundtrip(family, dtype)
    before, after = values(folder), values(back)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        if (
            family == "gemma3_text" and "norm" in name
        ):  # stored with 1 added, rounded to float32
            assert np.abs(after[name] - expected).max() <= 1.2e-7
        else:
            assert (after[name] == expected).all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(
    roundtrip: Callable[..., tuple[Path, Path]], family: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(2, 50)[None]
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(path)(tokens).logits
            for path in roundtrip(family)
        )
    tolerance = 1e-4 if family == "gemma3_text" else 0.0
    assert float((expected - found).abs().max()) <= tolerance


def test_a_folded_scaling_comes_out_of_the_weights(
    roundtrip: Callable[..., tuple[Path, Path]],
) -> None:
    scaling = RopeScaling("yarn", factor=4.0)
    folder, back = roundtrip("llama", rope=scaling, encoding="folded")
    before, after = values(folder), values(back)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=3e-7, err_msg=name)
    config = json.loads((back / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["factor"] == 4.0
    assert config["max_position_embeddings"] == 256


def test_what_comes_back_is_the_same_file_again(
    roundtrip: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    _, back = roundtrip("qwen3", rope=RopeScaling("yarn", factor=4.0))
    convert(ConvertOptions(back, tmp_path / "again.gguf"))
    first, again = (
        read_gguf(tmp_path / "model.gguf"),
        read_gguf(tmp_path / "again.gguf"),
    )
    assert first.tensors.keys() == again.tensors.keys()
    for name in first.tensors:
        assert bytes(first.tensor_data(name)) == bytes(again.tensor_data(name)), name
    for key in (
        "tokens",
        "merges",
        "pre",
        "token_type",
        "bos_token_id",
        "add_bos_token",
    ):
        assert first.get(f"tokenizer.ggml.{key}") == again.get(
            f"tokenizer.ggml.{key}"
        ), key


def test_quantized_tensors_come_back_as_what_they_stand_for(tmp_path: Path) -> None:
    file, back = tmp_path / "demo.gguf", tmp_path / "back"
    convert(ConvertOptions(DEMO_MODEL, file, type="q8_0"))
    done = export(ExportOptions(file, back))
    assert done.dtype == "float32"
    assert any("what they lost stays lost" in note for note in done.notes)
    before, after = values(DEMO_MODEL), values(back)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < np.abs(after[name] - before[name]).max() < 0.02
    template = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())[
        "chat_template"
    ]
    assert (
        json.loads((back / "tokenizer_config.json").read_text())["chat_template"]
        == template
    )


def test_sentencepiece_comes_back(tmp_path: Path, shared: Path) -> None:
    from tokenizers import Tokenizer

    from ggext.runtime.model import Model

    file, back = tmp_path / "stories.gguf", tmp_path / "back"
    convert(ConvertOptions(shared / "models" / "stories260K", file))
    assert export(ExportOptions(file, back)).tokens_compared
    tokenizer = Tokenizer.from_file(str(back / "tokenizer.json"))
    text = "Once upon a time, there was a little girl.\n\nShe  said: 你好 — £5!"
    with Model.open(file, 0) as model:
        assert tokenizer.encode(text).ids == model.tokenize(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("family", ["phi", "starcoder2"])
def test_another_family_is_refused_by_name(tmp_path: Path, family: str) -> None:
    file = tmp_path / "model.gguf"
    convert(ConvertOptions(make_model(tmp_path / "model", family), file))
    with pytest.raises(
        GgufError, match=r"do not say all of a config\.json .*: give --original FOLDER"
    ):
        export(ExportOptions(file, tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_an_unknown_pre_tokenizer_is_refused() -> None:
    from ggext.export.tokenizer import Vocabulary

    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    with pytest.raises(GgufError, match="pre 'default' splits a text is not known"):
        Vocabulary(fields, "model.gguf").tokenizer()


def test_a_folder_that_exists_stays(tmp_path: Path) -> None:
    convert(ConvertOptions(DEMO_MODEL, tmp_path / "demo.gguf"))
    (tmp_path / "back").mkdir()
    with pytest.raises(OutputError, match="exists; name another folder"):
        export(ExportOptions(tmp_path / "demo.gguf", tmp_path / "back"))


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="is a checkpoint already"):
        export(ExportOptions(DEMO_MODEL, tmp_path / "back"))


def test_a_tokenizer_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggext.export import tokenizer

    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    convert(ConvertOptions(DEMO_MODEL, tmp_path / "demo.gguf"))
    monkeypatch.setattr(tokenizer.Vocabulary, "_byte_level", _without_merges(tokenizer))
    with pytest.raises(
        GgufError, match=r"differs from llama\.cpp's on a sample, at token"
    ):
        export(ExportOptions(tmp_path / "demo.gguf", tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def _without_merges(module: Any) -> Callable[[Any], dict[str, Any]]:
    plain = module.Vocabulary._byte_level

    def broken(self: Any) -> dict[str, Any]:
        made: dict[str, Any] = plain(self)
        made["model"]["merges"] = made["model"]["merges"][:-40]
        return made

    return broken
