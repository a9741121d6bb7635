"""Folders that hold something else: packed weights, no weights, another head, a GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import (
    ADAPTER,
    WEIGHTS,
    Tensors,
    change_config,
    converted,
    load,
    refused,
    save,
)
from family_rows import EXPERTS
from tiny import make_model

from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import CheckpointError, GgextError
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")
numpy_files = pytest.importorskip("safetensors.numpy")


def _beside(name: str, **others: Any) -> Tensors:
    return {f"{name}.{end}": values for end, values in others.items()}


_U8 = np.zeros((4, 4), "u1")
_F16 = np.zeros((4, 4), "<f2")
_QUERY = "model.layers.0.self_attn.q_proj"
_PACKED: dict[str, tuple[Tensors, str]] = {
    "bitsandbytes in 4 bits": (
        {
            f"{_QUERY}.weight": _U8,
            f"{_QUERY}.weight.absmax": _F16,
            f"{_QUERY}.weight.quant_map": _F16,
        },
        "take the unquantized model",
    ),
    "bitsandbytes in 8 bits": (
        _beside(_QUERY, weight=_U8.astype("i1"), SCB=_F16),
        "take the unquantized model",
    ),
    "HQQ": (_beside(_QUERY, W_q=_U8), "unquantized"),
}


@pytest.mark.parametrize("name", _PACKED)
@pytest.mark.parametrize("stated", [None, {"quant_method": "fp8"}])
def test_packed_weights_are_known_by_their_tensors(
    copy: Path, tmp_path: Path, name: str, stated: dict[str, Any] | None
) -> None:
    packed, remedy = _PACKED[name]
    tensors = {k: v for k, v in load(copy).items() if not k.startswith(_QUERY)}
    save(tensors | packed, copy / WEIGHTS)
    change_config(copy, quantization_config=stated)
    message = refused(copy, tmp_path / "x.gguf")
    assert f"quantized by {name}," in message
    assert remedy in message


# what a folder is ---------------------------------------------------------------------------------


def _empty(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(b"")

    return make


def _adapter_folder(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save({"a": np.zeros(1, "<f4")}, folder / "adapter_model.safetensors")


_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter": (
        _adapter_folder,
        "is a LoRA adapter of 'some/base-model', not a model: merge it",
    ),
    "Mistral's own": (
        _empty("consolidated.safetensors", "params.json"),
        "Mistral's own format",
    ),
    "Meta's own": (_empty("consolidated.00.pth", "params.json"), "Meta's own format"),
    "diffusers": (_empty("model_index.json"), "a pipeline of diffusers"),
    "DeepSpeed": (_empty("zero_to_fp32.py", "latest"), "run its zero_to_fp32.py"),
    "distributed": (_empty("__0_0.distcp"), "a distributed checkpoint of PyTorch"),
    "TensorFlow": (_empty("tf_model.h5"), "TensorFlow's weights"),
    "Flax": (_empty("flax_model.msgpack"), "Flax's weights"),
    "ONNX": (_empty("model.onnx"), "an ONNX model"),
    "a variant": (_empty("model.fp16.safetensors"), "rename it to model.safetensors"),
    "a training": (
        _empty("checkpoint-5/x", "checkpoint-50/x"),
        "give one, such as checkpoint-50",
    ),
    "a folder within": (
        _empty("tiny/config.json"),
        "its folder tiny has a config.json",
    ),
    "GGUF files": (_empty("a.gguf", "b.gguf"), "b.gguf"),
    "another name": (
        _empty("merged.safetensors"),
        "has weights under the name 'merged.safetensors'",
    ),
}


@pytest.mark.parametrize("name", _FOLDERS)
@pytest.mark.parametrize("with_config", [True, False])
def test_what_a_folder_is(
    llama: Path, tmp_path: Path, name: str, *, with_config: bool
) -> None:
    make, message = _FOLDERS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    if with_config:
        shutil.copy(llama / "config.json", folder)
    assert message in refused(folder, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "run git lfs pull",
        ),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    ],
)
def test_what_is_in_place_of_the_weights(
    copy: Path, tmp_path: Path, start: bytes, message: str
) -> None:
    (copy / WEIGHTS).write_bytes(start)
    assert message in refused(copy, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("LlamaForSequenceClassification", "a classifier and not a language model"),
        ("LlamaForTokenClassification", "a classifier of tokens"),
        ("InternLM2ForRewardModel", "a reward model"),
    ],
)
def test_a_model_with_another_head_is_refused(
    copy: Path, tmp_path: Path, architecture: str, message: str
) -> None:
    change_config(copy, architectures=[architecture])
    assert message in refused(copy, tmp_path / "x.gguf")
    change_config(copy, architectures=["LlamaModel"])
    assert converted(copy, tmp_path / "y.gguf")[0]


# a model in several GGUF files --------------------------------------------------------------------


@pytest.mark.parametrize("named", ["folder", "first", "second"])
def test_any_part_or_the_folder_makes_a_new_file(
    llama: Path, tmp_path: Path, named: str
) -> None:
    from ggext.rope.scaling import RopeScaling

    whole, _ = converted(llama, tmp_path / "whole.gguf")
    folder = tmp_path / "parts"
    folder.mkdir()
    convert(ConvertOptions(llama, folder / "m.gguf", split=500_000))
    (folder / "mmproj-m.gguf").write_bytes(b"")  # another file that often lies there
    parts = sorted(folder.glob("m-*.gguf"))
    source = {"folder": folder, "first": parts[0], "second": parts[1]}[named]
    out = tmp_path / "again.gguf"
    convert(
        ConvertOptions(source, out, RopeScaling("yarn", factor=4.0), encoding="keys")
    )
    gguf = read_gguf(out)
    assert {name: bytes(gguf.tensor_data(name)) for name in gguf.tensors} == whole
    assert not any(key.startswith("split.") for key in gguf.fields)
    assert gguf.get("llama.context_length") == 256
    missing = parts[1].rename(tmp_path / "elsewhere")
    with pytest.raises(GgextError):
        plan(ConvertOptions(folder, out, force=True))
    missing.rename(parts[1])


@pytest.mark.parametrize(
    ("kind", "arch", "message"),
    [
        ("adapter", "llama", "a LoRA adapter"),
        ("mmproj", "clip", "the part of a model that sees"),
        ("model", "clip", "the part of a model that sees"),
        ("imatrix", "llama", "an importance matrix"),
    ],
)
def test_a_gguf_file_that_is_no_model(
    llama: Path, tmp_path: Path, kind: str, arch: str, message: str
) -> None:
    from ggext.gguf.types import Field
    from ggext.gguf.writer import write_gguf

    planned = plan(ConvertOptions(llama, tmp_path / "x.gguf"))
    fields = {"general.architecture": Field.of(arch), "general.type": Field.of(kind)}
    write_gguf(tmp_path / "other.gguf", fields, planned.tensors[:1])
    assert message in refused(tmp_path / "other.gguf", tmp_path / "y.gguf")


def test_a_bf16_mixture_of_experts_is_judged_by_its_median(tmp_path: Path) -> None:
    """One token whose rounded router takes another expert has a KL of 0.1 nats and more."""
    pytest.importorskip("llama_cpp")
    from ggext.verify import verify

    sizes = EXPERTS | {"head_dim": 32, "norm_topk_prob": True}
    model = make_model(tmp_path / "moe", "qwen3_moe", dtype="bfloat16", **sizes)
    out = tmp_path / "moe.gguf"
    convert(ConvertOptions(model, out))
    report = verify(out, model, levels=["logits"])
    assert report.passed
    assert report.checks[0].quantity.startswith("median KL")
    change_config(model, rope_theta=5000.0, rope_parameters=None)
    wrong = verify(out, model, levels=["logits"])
    assert not wrong.passed


def test_a_reference_that_transformers_cannot_load_whole_is_no_judge(
    copy: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from ggext.verify import verify

    save({f"_orig_mod.{name}": v for name, v in load(copy).items()}, copy / WEIGHTS)
    converted(copy, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="makes them up"):
        verify(tmp_path / "x.gguf", copy, levels=["logits"])
