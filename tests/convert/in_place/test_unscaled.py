"""`--rope none` gives back the keys that were there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from changed_in_place import REQUESTS, refused, told
from tiny_gguf import write_random

from ggext.gguf.open import read_gguf
from ggext.gguf.rope import effective_table
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import TensorToWrite, write_gguf

#: Keys by which unscaled files of different origin differ, ``None`` for one that is not there.
UNSCALED: dict[str, dict[str, Any]] = {
    "as our own converter": {"llama.rope.scaling.type": "none"},
    "as llama.cpp's of Qwen": {"llama.rope.dimension_count": None},
    "nothing said": {"llama.rope.dimension_count": None, "llama.rope.freq_base": None},
    "linear by 1": {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 1.0,
    },
    "yarn's context alone": {
        "llama.rope.scaling.original_context_length": Field(ValueType.UINT32, 64)
    },
    "other keys": {
        "llama.rope.scaling.finetuned": False,
        "llama.rope.scaling.yarn_attn_factor": 1.0,
    },
}


def unscaled_file(path: Path, origin: dict[str, Any]) -> Path:
    gguf = read_gguf(write_random(path.with_name("base.gguf"), "llama"))
    fields = {
        key: field
        for key, field in gguf.fields.items()
        if origin.get(key, field) is not None
    }
    fields |= {
        key: Field.of(value) for key, value in origin.items() if value is not None
    }
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(path, fields, tensors)
    return path


@pytest.mark.parametrize("origin", UNSCALED.values(), ids=UNSCALED)
def test_none_gives_the_same_keys_back(tmp_path: Path, origin: dict[str, Any]) -> None:
    """Whichever of them the file had, in place and in a file of its own, and after a context of the
    user's own."""
    model = unscaled_file(tmp_path / "model.gguf", origin)
    scaled, back = tmp_path / "scaled.gguf", tmp_path / "back.gguf"
    told("convert", model, scaled, *REQUESTS["yarn"], "--original-context", 32)
    told("convert", scaled, "--in-place", *REQUESTS["yarn by tensor"])
    assert "context: 128 → 64 tokens" in told("convert", scaled, back, "--rope", "none")
    assert "have the same keys and tensors" in told("inspect", "--diff", model, back)


def test_none_gives_back_what_the_converter_said(tmp_path: Path) -> None:
    """Also the recipe, by which a file is verified; and the keys of a file whose query weights were
    changed."""
    told("convert", "demo", tmp_path / "model.gguf")
    told(
        "convert",
        tmp_path / "model.gguf",
        tmp_path / "folded.gguf",
        "--yarn",
        4,
        "--encoding",
        "folded",
    )
    told("convert", tmp_path / "folded.gguf", tmp_path / "back.gguf", "--rope", "none")
    original, back = (
        read_gguf(tmp_path / "model.gguf"),
        read_gguf(tmp_path / "back.gguf"),
    )
    assert "checkpoint" in original.get("ggext.recipe")
    assert back.fields == original.fields


def test_a_scaling_that_was_there_does_not_come_back(tmp_path: Path) -> None:
    """``--rope none`` is no scaling; the author's own comes back with undo."""
    model = unscaled_file(
        tmp_path / "model.gguf",
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
    )
    told("convert", model, tmp_path / "scaled.gguf", "--linear", 4)
    told("convert", tmp_path / "scaled.gguf", "--in-place", "--rope", "none")
    assert read_gguf(tmp_path / "scaled.gguf").get("llama.rope.scaling.type") == "none"


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "3",
        '{"llama.context_length":[4,-1]}',
        '{"llama.context_length":[99,1]}',
        '{"llama.context_length":64}',
        '{"llama.context_length":[8,64]}',
        '{"llama.context_length":[9,[1]]}',
        '{"general.alignment":[4,64]}',
        '{"llama.context_length":[4,"64"]}',
        "[" * 100_000,
    ],
)
def test_a_malformed_memory_is_refused(model: Path, tmp_path: Path, kept: str) -> None:
    told("convert", model, "--in-place", "--yarn", 4)
    gguf = read_gguf(model)
    write_gguf(
        tmp_path / "bad.gguf", gguf.fields | {"ggext.before": Field.of(kept)}, []
    )
    assert "ggext.before in the file is malformed" in refused(
        "convert", tmp_path / "bad.gguf", "--in-place", "--rope", "none"
    )


def test_a_memory_of_a_scaling_is_not_believed(model: Path, tmp_path: Path) -> None:
    told("convert", model, "--in-place", "--yarn", 4)
    gguf = read_gguf(model)
    false = '{"llama.context_length":[4,64],"llama.rope.scaling.factor":[6,4.0]}'
    write_gguf(
        tmp_path / "false.gguf", gguf.fields | {"ggext.before": Field.of(false)}, []
    )
    told("convert", tmp_path / "false.gguf", "--in-place", "--rope", "none")
    assert (
        effective_table(read_gguf(tmp_path / "false.gguf")).inv_freq[-1]
        == effective_table(
            read_gguf(write_random(tmp_path / "fresh.gguf", "llama"))
        ).inv_freq[-1]
    )
