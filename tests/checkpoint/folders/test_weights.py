"""Checkpoints as people have them: weights in several files, of several names, with adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_folders import (
    ADAPTER,
    INDEX,
    WEIGHTS,
    Tensors,
    adapter,
    change_config,
    converted,
    load,
    refused,
    save,
)

pytest.importorskip("transformers")
numpy_files = pytest.importorskip("safetensors.numpy")


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


def test_an_adapter_beside_a_model_is_told(copy: Path, tmp_path: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save(adapter(load(copy), "base_model.model."), copy / "adapter_model.safetensors")
    _, notes = converted(copy, tmp_path / "x.gguf")
    assert (
        "adapter_config.json lies next to the model: the adapter is not in the file"
        in notes
    )
    assert "also there and not read" not in notes
