"""The numbers of a file that reach the native extension: frequencies, gains, scales, factors. Each is
used, or refused by a `GgextError`; no warning of NumPy's, no ValueError of the extension."""

from __future__ import annotations

import contextlib
import math
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import mutations
from hostile.mutations import Draft, TensorDraft, draft_of
from tiny_gguf import base_of

from ggext.convert import ConvertOptions, convert
from ggext.errors import GgextError
from ggext.gguf.types import Field, ValueType
from ggext.inspect import inspect
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")

NUMBERS = (0.0, -0.0, -1.0, 1e-45, 1e-30, 1e30, 3e38, math.inf, -math.inf, math.nan)
#: Keys that a rotation is made of, with the scaling that they belong to.
KEYS = {
    "rope.freq_base": "none",
    "rope.scaling.factor": "linear",
    "rope.scale_linear": "none",
    "rope.scaling.attn_factor": "yarn",
    "rope.scaling.yarn_ext_factor": "yarn",
    "rope.scaling.yarn_attn_factor": "yarn",
    "rope.scaling.yarn_beta_fast": "yarn",
    "rope.scaling.yarn_beta_slow": "yarn",
    "rope.scaling.yarn_log_multiplier": "yarn",
    "attention.scale": "none",
}


@pytest.fixture(autouse=True)
def _as_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of defence alone."""
    monkeypatch.setenv("GGEXT_FIRST_LOAD", "here")


def with_scaling(kind: str) -> Draft:
    draft = draft_of("llama", *base_of("llama"))
    draft.fields["llama.rope.scaling.type"] = Field.of(kind)
    if kind != "none":
        draft.fields["llama.rope.scaling.factor"] = Field(ValueType.FLOAT32, 4.0)
        length = draft.fields["llama.context_length"].value // 4
        key = "llama.rope.scaling.original_context_length"
        draft.fields[key] = Field(ValueType.UINT32, length)
    return draft


def used(path: Path, draft: Draft) -> None:
    """By whatever computes with it: a context that rolls turns cached keys."""
    from ggext.runtime.engine import MemoryOptions, Model, Session, SessionOptions

    mutations.write(path, draft)

    def roll() -> None:
        options = SessionOptions(
            n_ctx=64, threads=1, n_batch=32, memory=MemoryOptions("stream")
        )
        with Model.open(path, 0) as model, Session(model, options) as session:
            for start in range(0, 160, 32):
                session.evaluate([3 + i % 40 for i in range(start + 32)])

    yarn = RopeScaling("yarn", factor=2)
    out = path.with_suffix(".out")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for command in (
            roll,
            lambda: inspect(path).as_dict(),
            lambda: verify(path, levels=["table", "kernel"]),
            lambda: convert(ConvertOptions(path, out, yarn, type="F16", force=True)),
        ):
            with contextlib.suppress(GgextError):
                command()


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_any_number_is_used_or_refused(tmp_path: Path, key: str) -> None:
    for number in NUMBERS:
        draft = with_scaling(KEYS[key])
        draft.fields[f"llama.{key}"] = Field(ValueType.FLOAT32, number)
        used(tmp_path / "model.gguf", draft)


def test_factors_of_any_number_are_used_or_refused(tmp_path: Path) -> None:
    pairs = base_of("llama")[0]["llama.rope.dimension_count"] // 2
    for number in NUMBERS:
        draft = with_scaling("none")
        data = struct.pack("<f", 1.0) * (pairs - 1) + struct.pack("<f", number)
        draft.tensors["rope_freqs.weight"] = TensorDraft((pairs,), 0, data)
        used(tmp_path / "model.gguf", draft)


def test_weights_of_any_number_are_used_or_refused(tmp_path: Path) -> None:
    for number in NUMBERS:
        draft = with_scaling("none")
        name = "blk.0.attn_k.weight"
        tensor = draft.tensors[name]
        draft.tensors[name] = replace(tensor, data=struct.pack("<f", number))
        used(tmp_path / "model.gguf", draft)
