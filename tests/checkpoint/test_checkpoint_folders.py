"""Checkpoints as people have them: folders of every sort, weights under several names, in several
files, quantized, wrapped. Each is converted as transformers reads it, or refused with what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_rows import EXPERTS, ROWS
from tiny import make_model, small_config, write_tokenizer

from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import CheckpointError, GgextError
from ggext.gguf.open import read_gguf

pytest.importorskip("transformers")
numpy_files = pytest.importorskip("safetensors.numpy")

Tensors = dict[str, "np.ndarray[Any, Any]"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("folders") / "llama", tie_word_embeddings=True
    )


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def load(folder: Path) -> Tensors:
    tensors: Tensors = numpy_files.load_file(folder / WEIGHTS)
    return tensors


def save(tensors: Tensors, path: Path) -> None:
    numpy_files.save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, path
    )


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def in_shards(folder: Path, tensors: Tensors, *, index: bool = True) -> list[str]:
    """Two files; the names of the tensors."""
    names = list(tensors)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return names


def converted(folder: Path, out: Path) -> tuple[dict[str, bytes], str]:
    """The tensors' data by their GGUF names, and the notes in one text."""
    done = convert(ConvertOptions(folder, out, force=True))
    gguf = read_gguf(out)
    data = {name: bytes(gguf.tensor_data(name)) for name in gguf.tensors}
    return data, "\n".join(done.notes)


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(GgextError) as error:
        plan(ConvertOptions(folder, out))
    assert "\n" not in str(error.value)
    return str(error.value)


# which of several files ---------------------------------------------------------------------------


def test_a_single_file_goes_before_an_index(copy: Path, tmp_path: Path) -> None:
    """As transformers reads it; once the older weights of the index were written, silently."""
    plain, _ = converted(copy, tmp_path / "a.gguf")
    in_shards(copy, {name: values * 0.5 for name, values in load(copy).items()})
    both, notes = converted(copy, tmp_path / "b.gguf")
    assert both == plain
    assert (
        f"{WEIGHTS} is read, as transformers does; also there and not read: {INDEX}"
        in notes
    )


def test_what_is_wrong_with_the_file_that_is_read_names_the_other(
    copy: Path, tmp_path: Path
) -> None:
    in_shards(copy, load(copy))
    save({"model.norm.weight": np.zeros(3, "<f4")}, copy / WEIGHTS)
    assert f"({WEIGHTS} is read before {INDEX}" in refused(copy, tmp_path / "x.gguf")


def test_safetensors_go_before_pickles(copy: Path, tmp_path: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"not read")
    _, notes = converted(copy, tmp_path / "x.gguf")
    assert "also there and not read: pytorch_model.bin" in notes


def test_a_shard_that_is_left_over_is_told(copy: Path, tmp_path: Path) -> None:
    in_shards(copy, load(copy))
    (copy / WEIGHTS).unlink()
    save({"old": np.zeros(3, "<f4")}, copy / "model-00003-of-00003.safetensors")
    _, notes = converted(copy, tmp_path / "x.gguf")
    assert "not read: model-00003-of-00003.safetensors" in notes


def test_config_json_may_name_the_weights(copy: Path, tmp_path: Path) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    (copy / WEIGHTS).rename(copy / "other.safetensors")
    save({}, copy / WEIGHTS)
    change_config(copy, transformers_weights="other.safetensors")
    named, notes = converted(copy, tmp_path / "b.gguf")
    assert named == plain
    assert (
        f"other.safetensors is read, as transformers does; also there and not read: {WEIGHTS}"
        in (notes)
    )
    change_config(copy, transformers_weights="../copy/other.safetensors")
    assert "must name a file next to it" in refused(copy, tmp_path / "c.gguf")


def test_shards_without_an_index_are_all_there_or_not(
    copy: Path, tmp_path: Path
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    in_shards(copy, load(copy), index=False)
    (copy / WEIGHTS).unlink()
    without, notes = converted(copy, tmp_path / "b.gguf")
    assert without == plain
    assert f"{INDEX} is missing: the 2 shards are read without it" in notes
    first = copy / "model-00001-of-00002.safetensors"
    shutil.copy(first, copy / "model-00001-of-00003.safetensors")
    assert "shards of several models" in refused(copy, tmp_path / "c.gguf")
    (copy / "model-00001-of-00003.safetensors").unlink()
    first.unlink()
    message = refused(copy, tmp_path / "c.gguf")
    assert f"lacks 1 of 2 shards, first {first.name}, and {INDEX}" in message


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_tensor_in_two_shards(copy: Path, tmp_path: Path, factor: float) -> None:
    tensors = load(copy)
    names = in_shards(copy, tensors)
    (copy / WEIGHTS).unlink()
    second = copy / "model-00002-of-00002.safetensors"
    save(numpy_files.load_file(second) | {names[0]: tensors[names[0]] * factor}, second)
    if factor == 1.0:
        _, notes = converted(copy, tmp_path / "x.gguf")
        assert (
            f"tensor {names[0]} is in model-00001-of-00002.safetensors and in" in notes
        )
    else:
        assert "with other values" in refused(copy, tmp_path / "x.gguf")


# under which names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("renamed", "note"),
    [
        (
            lambda name: name.removeprefix("model."),
            "a base model's, whose names lack model.",
        ),
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"module._orig_mod.{name}", "_orig_mod., module."),
        (
            lambda name: name.replace("model.layers", "model._orig_mod.layers"),
            "_orig_mod.",
        ),
        (lambda name: f"_fsdp_wrapped_module.{name}", "_fsdp_wrapped_module."),
        (
            lambda name: name.replace(".mlp", "._checkpoint_wrapped_module.mlp"),
            "_checkpoint",
        ),
        (lambda name: f"base_model.model.{name}", "base_model.model."),
        (
            lambda name: f"module.{name.removeprefix('model.')}",
            "whose names lack model.",
        ),
        (lambda name: f"model.{name}", "names begin with model.: taken off"),
        (lambda name: f"policy.llm.{name}", "names begin with policy.llm.: taken off"),
    ],
)
def test_names_of_what_wraps_a_model(
    copy: Path, tmp_path: Path, renamed: Callable[[str], str], note: str
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    save({renamed(name): values for name, values in load(copy).items()}, copy / WEIGHTS)
    wrapped, notes = converted(copy, tmp_path / "b.gguf")
    assert wrapped == plain
    assert note in notes


def test_two_tensors_of_one_name_are_refused(copy: Path, tmp_path: Path) -> None:
    tensors = load(copy)
    save(
        tensors | {f"_orig_mod.{name}": value for name, value in tensors.items()},
        copy / WEIGHTS,
    )
    assert "two tensors have the same name" in refused(copy, tmp_path / "x.gguf")


def test_a_base_model_without_its_output_matrix(copy: Path, tmp_path: Path) -> None:
    change_config(copy, tie_word_embeddings=False)
    message = refused(copy, tmp_path / "x.gguf")
    assert (
        "the weights are a base model's, and tie_word_embeddings is not true" in message
    )


def test_an_output_matrix_without_an_embedding_is_both(
    copy: Path, tmp_path: Path
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    tensors = load(copy)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save(tensors, copy / WEIGHTS)
    tied, notes = converted(copy, tmp_path / "b.gguf")
    assert tied == plain
    assert "taken for both" in notes


def adapter(tensors: Tensors, prefix: str = "") -> Tensors:
    parts = {}
    for name, values in tensors.items():
        if name.endswith("q_proj.weight"):
            module = prefix + name.removesuffix(".weight")
            parts[f"{module}.lora_A.default.weight"] = np.ones(
                (4, values.shape[1]), "<f4"
            )
            parts[f"{module}.lora_B.default.weight"] = np.ones(
                (values.shape[0], 4), "<f4"
            )
    return parts


def test_an_adapter_that_is_not_merged_is_refused(copy: Path, tmp_path: Path) -> None:
    tensors = load(copy)
    changed = {
        f"base_model.model.{n}".replace("q_proj.", "q_proj.base_layer."): v
        for n, v in tensors.items()
    }
    save(changed | adapter(tensors, "base_model.model."), copy / WEIGHTS)
    message = refused(copy, tmp_path / "x.gguf")
    assert "an adapter that is not merged" in message
    assert "merge_and_unload()" in message


def test_an_adapters_tensors_beside_the_model_are_told(
    copy: Path, tmp_path: Path
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    tensors = load(copy)
    save(tensors | adapter(tensors), copy / WEIGHTS)
    with_it, notes = converted(copy, tmp_path / "b.gguf")
    assert with_it == plain
    assert "4 tensors are of an adapter and not in the file" in notes


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base-model"}


def test_an_adapter_beside_a_model_is_told(copy: Path, tmp_path: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save(adapter(load(copy), "base_model.model."), copy / "adapter_model.safetensors")
    _, notes = converted(copy, tmp_path / "x.gguf")
    assert (
        "adapter_config.json lies next to the model: the adapter is not in the file"
        in notes
    )
    assert "also there and not read" not in notes


#: Every mixture of experts, and what else transformers 5 calls otherwise than the checkpoints.
_SAVED = sorted(
    {
        "deepseek_v2",
        "deepseek_v3",
        "dots1",
        "ernie4_5_moe",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_neox",
        "gpt_oss",
        "granitemoe",
        "granitemoeshared",
        "lfm2_moe",
        "llama4_text",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
    }
)


@pytest.mark.parametrize("model_type", _SAVED)
def test_names_that_transformers_has_in_memory(model_type: str, tmp_path: Path) -> None:
    """What ``save_pretrained(save_original_format=False)`` writes: fused experts, other names."""
    from transformers import AutoModelForCausalLM

    row = next(row for row in ROWS.values() if row.model_type == model_type)
    model = AutoModelForCausalLM.from_config(small_config(model_type, **row.config))
    made = []
    for name, as_published in (("published", True), ("memory", False)):
        folder = tmp_path / name
        model.save_pretrained(folder, save_original_format=as_published)
        write_tokenizer(folder)
        made.append(
            (set(load(folder)), converted(folder, tmp_path / f"{name}.gguf")[0])
        )
    (published, first), (memory, second) = made
    assert published != memory or model_type in ("llama4_text", "gpt_oss")
    assert first == second


@pytest.mark.parametrize(
    "model_type", ["cohere2", "gemma3_text", "qwen3", "starcoder2"]
)
def test_a_base_model_that_transformers_saved(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    row = next(row for row in ROWS.values() if row.model_type == model_type)
    config = small_config(model_type, **row.config | {"tie_word_embeddings": True})
    model = AutoModelForCausalLM.from_config(config)
    for name, saved in (("whole", model), ("base", model.base_model)):
        saved.save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
    whole, _ = converted(tmp_path / "whole", tmp_path / "whole.gguf")
    base, notes = converted(tmp_path / "base", tmp_path / "base.gguf")
    assert base == whole
    assert "whose names lack model." in notes


# models that see too ------------------------------------------------------------------------------

_VISION = {
    "mistral3": {
        "model_type": "pixtral",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 32,
        "image_size": 28,
        "patch_size": 14,
    },
    "gemma3": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
_TEXT = {
    "mistral3": {"model_type": "mistral", "head_dim": 32},
    "gemma3": ROWS["gemma3_text"].config,
}
for _name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
    _TEXT[_name] = dict(ROWS[_name].config)
    _VISION[_name] = _TEXT[_name].pop("vision_config")


@pytest.mark.parametrize("model_type", _TEXT)
@pytest.mark.parametrize("top", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_the_whole_models_tie_counts(
    model_type: str, top: bool | None, inner: bool | None, tmp_path: Path
) -> None:
    """As in transformers, whose class of the whole model has the output matrix; what text_config
    says of it is not read."""
    from tiny import SIZES
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = SIZES | _TEXT[model_type]
    ties = {"tie_word_embeddings": inner}
    text = {k: v for k, v in (sizes | ties).items() if v is not None}
    tops = {} if top is None else {"tie_word_embeddings": top}
    config = AutoConfig.for_model(
        model_type, text_config=text, vision_config=_VISION[model_type], **tops
    )
    model = AutoModelForImageTextToText.from_config(config)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    data, _ = converted(folder, tmp_path / "x.gguf")
    assert ("output.weight" in data) == (not config.tie_word_embeddings)


def test_the_names_of_a_text_part_in_every_layout() -> None:
    """That of the published files, those of transformers 4 and 5, and that of 5.10, which doubled
    a prefix."""
    from ggext.converters.base import text_part_name

    for name in ("layers.0.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight"):
        for prefix in (
            "language_model.model.",
            "model.language_model.",
            "model.language_model.model.",
            "language_model.",
            "model.",
        ):
            assert text_part_name(prefix + name) == f"model.{name}"
    for prefix in ("language_model.", "", "model.language_model."):
        assert text_part_name(f"{prefix}lm_head.weight") == "lm_head.weight"


# quantized ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "mxfp4"},
        {"bits": 4, "group_size": 64},
    ],
)
def test_plain_floats_are_believed(
    copy: Path, tmp_path: Path, stated: dict[str, Any]
) -> None:
    plain, _ = converted(copy, tmp_path / "a.gguf")
    change_config(copy, quantization_config=stated)
    same, notes = converted(copy, tmp_path / "b.gguf")
    assert same == plain
    assert "every tensor is a plain float: the tensors are believed" in notes


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
