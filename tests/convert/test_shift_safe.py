"""Which encodings leave keys whose length survives context shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folded import BETAS, YARN, bake, norms_after_shifts
from hypothesis import given
from hypothesis import strategies as st

from ggext.errors import RopeError
from ggext.rope.decode import decode
from ggext.rope.encode import encode
from ggext.rope.encoding import EncodingName
from ggext.rope.keys import QUERY_SCALE
from ggext.rope.scaling import RopeGeometry, RopeScaling

GEOMETRY = RopeGeometry(
    n_rot=64, head_dim=64, base=10000.0, layout="norm", trained_context=4096
)


@pytest.mark.parametrize(
    ("scaling", "arch", "carried_by"),
    [
        (YARN, "llama", "keys"),
        (YARN, "qwen2", "keys"),
        (BETAS, "llama", "tensor"),
        (YARN, "qwen3", "keys"),
    ],
)
def test_the_kernel_has_no_gain_left(
    scaling: RopeScaling, arch: str, carried_by: str
) -> None:
    encoding = encode(scaling, GEOMETRY, arch, "folded")
    assert encoding.name == "folded"
    assert encoding.exactness.is_exact
    assert encoding.shift_safe
    assert bool(encoding.tensors) is (carried_by == "tensor")
    without = {k: v for k, v in encoding.keys.items() if k != QUERY_SCALE}
    kernel = decode(without, encoding.tensors, arch)
    assert kernel.attention_factor == pytest.approx(1.0, abs=2e-7)


@given(
    gain=st.floats(0.1, 10), factor=st.floats(1, 64), beta=st.none() | st.floats(2, 64)
)
def test_every_gain_can_be_folded(
    gain: float, factor: float, beta: float | None
) -> None:
    scaling = RopeScaling("yarn", factor=factor, beta_fast=beta, attention_factor=gain)
    encoding = encode(scaling, GEOMETRY, "llama", "folded")
    assert encoding.exactness.is_exact
    assert encoding.shift_safe


def test_which_encodings_are_shift_safe() -> None:
    assert not encode(YARN, GEOMETRY, "llama").shift_safe
    assert not encode(BETAS, GEOMETRY, "llama").shift_safe
    assert encode(
        RopeScaling("yarn", factor=4, attention_factor=1.0), GEOMETRY, "llama"
    ).shift_safe
    assert encode(RopeScaling("linear", factor=4), GEOMETRY, "llama").shift_safe


def test_without_a_gain_there_is_nothing_to_fold() -> None:
    assert (
        encode(RopeScaling("linear", factor=4), GEOMETRY, "llama", "folded").name
        == "keys"
    )


@pytest.mark.parametrize(
    ("scaling", "arch", "name", "message"),
    [
        (
            YARN,
            "qwen2",
            "tensor",
            "qwen2 does not load rope_freqs.weight; choose encoding='keys' or encoding='folded'",
        ),
        (BETAS, "llama", "keys", "cannot run yarn .* as keys: the nearest"),
        (
            RopeScaling("llama3", factor=4, attention_factor=1.2),
            "qwen2",
            "folded",
            "folding changes the gain, not the frequencies",
        ),
    ],
)
def test_a_forced_encoding_that_is_not_exact_is_refused(
    scaling: RopeScaling, arch: str, name: EncodingName, message: str
) -> None:
    with pytest.raises(RopeError, match=message):
        encode(scaling, GEOMETRY, arch, name)


def test_a_query_scale_that_means_nothing_is_refused() -> None:
    keys: dict[str, Any] = {"rope.dimension_count": 64, "context_length": 64}
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(
            RopeError, match=r"query_scale is .* must be a number above 0"
        ):
            decode(keys | {QUERY_SCALE: value}, {}, "llama")


pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")


def test_k_norms_survive_100_shifts_only_when_folded(
    checkpoint: Path, tmp_path: Path
) -> None:
    bake(checkpoint, tmp_path / "folded.gguf", YARN)
    bake(checkpoint, tmp_path / "keys.gguf", YARN, "keys")
    assert norms_after_shifts(tmp_path / "folded.gguf", 100).max() <= 1e-3
    destroyed = norms_after_shifts(tmp_path / "keys.gguf", 3)
    assert np.median(destroyed) == pytest.approx(1.1386294**3 - 1, rel=1e-3)
