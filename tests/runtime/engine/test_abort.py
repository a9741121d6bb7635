"""Files on which llama.cpp would abort are refused before it reads them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

from ggext.errors import GgufError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field, tensor_nbytes
from ggext.gguf.writer import TensorToWrite, write_gguf

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime.engine import Model, Sampling, Session, SessionOptions  # noqa: E402


def _zeros(size: int) -> list[bytes]:
    return [bytes(size)]


def damaged(
    source: Path, out: Path, fields: dict[str, Any], types: dict[str, int]
) -> Path:
    """A copy of a GGUF file with other values (in place of the old) and tensor types."""
    header = read_gguf(source)
    changed = {}
    for key, value in fields.items():
        old = header.fields.get(key)
        changed[key] = (
            Field.of(value) if old is None else Field(old.type, value, old.item_type)
        )
    tensors = []
    for name, info in header.tensors.items():
        kind = types.get(name, info.type)
        size = tensor_nbytes(name, info.shape, kind)
        tensors.append(
            TensorToWrite(name, info.shape, kind, size, partial(_zeros, size))
        )
    write_gguf(out, header.fields | changed, tensors)
    return out


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(
    ("fields", "types", "problem"),
    [
        pytest.param({"llama.block_count": 0}, {}, "block_count is 0", id="no layers"),
        pytest.param(
            {"llama.block_count": 513}, {}, "block_count is 513", id="many layers"
        ),
        pytest.param(
            {"llama.attention.layer_norm_rms_epsilon": -1.0},
            {},
            "epsilon is -1",
            id="epsilon",
        ),
        pytest.param(
            {"llama.attention.layer_norm_rms_epsilon": math.nan},
            {},
            "epsilon is nan",
            id="nan",
        ),
        pytest.param(
            {"llama.rope.scaling.type": "dynamic"},
            {},
            "scaling.type is 'dynamic'",
            id="scaling",
        ),
        pytest.param({"llama.expert_count": 8}, {}, "0 of 8 experts", id="experts"),
        pytest.param(
            {"llama.expert_used_count": 8}, {}, "8 of 0 experts", id="experts used"
        ),
        pytest.param(
            {"tokenizer.ggml.tokens": ["a"] * 512},
            {},
            "511 tokens occur twice",
            id="same tokens",
        ),
        pytest.param(
            {
                "tokenizer.ggml.model": "bert",
                "tokenizer.ggml.tokens": BYTES
                + [f"word {i}" for i in range(747 - 256)],
                "tokenizer.ggml.token_type": [6] * 256 + [1] * (747 - 256),
            },
            {},
            "has byte tokens",
            id="bert with bytes",
        ),
        pytest.param({}, {"output_norm.weight": 1}, "not of type F32", id="f16 norm"),
        pytest.param({}, {"blk.0.ffn_up.weight": 28}, "of type F64", id="f64 weight"),
        pytest.param({}, {"token_embd.weight": 24}, "of type I8", id="i8 embedding"),
    ],
)
def test_a_file_that_would_abort_llama_cpp_is_refused(
    small_gguf: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    types: dict[str, int],
    problem: str,
) -> None:
    bad = damaged(small_gguf, tmp_path / "bad.gguf", fields, types)
    with pytest.raises(GgufError, match=f"{problem}.*would abort"):
        Model.open(bad)


@pytest.mark.parametrize(
    "arch",
    ["dots1", "ernie4_5-moe", "glm4moe", "granitemoe", "llama4", "mistral3", "olmoe"],
)
def test_families_with_experts_and_chunks_answer(tmp_path: Path, arch: str) -> None:
    path = tiny_gguf.write_random(tmp_path / "m.gguf", arch)
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(n_ctx=256)) as session,
    ):
        session.evaluate([*range(5, 60)])
        answers = [[*session.generate(Sampling(temperature=0), 8)]]
        session.evaluate([*range(5, 60)])
        answers.append([*session.generate(Sampling(temperature=0), 8)])
    assert len(answers[0]) == 8
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arch", "changed", "problem"),
    [
        (
            "llama4",
            {"block_count": 3},
            "block_count is 3, and the architecture llama4 has 4 layers or more",
        ),
        ("llama4", {"attention.sliding_window": 0}, "attention.sliding_window is 0"),
        (
            "llama4",
            {"attention.sliding_window_pattern": 1},
            "attention.sliding_window is 8192, and no layer has a",
        ),
        (
            "gemma3",
            {"attention.sliding_window_pattern": 1},
            "attention.sliding_window is 64, and no layer has a",
        ),
        (
            "gpt-oss",
            {"attention.sliding_window_pattern": [0, 0]},
            "attention.sliding_window is 128, and no layer has",
        ),
    ],
)
def test_windows_that_would_abort_llama_cpp_are_refused(
    tmp_path: Path, arch: str, changed: dict[str, Any], problem: str
) -> None:
    keys = {f"{arch}.{key}": value for key, value in changed.items()}
    path = tiny_gguf.write_random(tmp_path / "m.gguf", arch, extra_keys=keys)
    with pytest.raises(GgufError, match=f"{problem}.*would abort"):
        Model.open(path)


def test_the_damage_itself_is_what_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    same = damaged(small_gguf, tmp_path / "same.gguf", {}, {})
    with Model.open(same) as model, Session(model) as session:
        assert session.evaluate([1]).evaluated == 1
