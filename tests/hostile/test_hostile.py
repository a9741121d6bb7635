"""Hostile input gives one clear line and leaves nothing behind; a mutated header or configuration
gives no other error than ours."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile.checkpoints import GOOD, HOSTILE, WEIGHTS, Hostile, make, parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggext.checkpoint.weights import read_tensors
from ggext.cli import main
from ggext.convert import ConvertOptions, plan
from ggext.errors import GgextError


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused_in_one_line(
    case: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.needs:
        pytest.importorskip(case.needs)
    folder = make(case, tmp_path / "case")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, ["convert", str(folder), "out.gguf", "--yarn", "4"]
    )
    assert result.exit_code == 1, result.output
    assert case.message in result.stderr
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1200
    assert result.stderr.removesuffix("\n").isprintable()
    assert {p.name for p in tmp_path.iterdir()} == {"home", "case"}


def test_a_link_to_a_good_file_is_read(tmp_path: Path) -> None:
    folder = make(Hostile(lambda _: None, ""), tmp_path / "case")
    result = CliRunner().invoke(
        main, ["convert", str(folder), str(tmp_path / "out.gguf")]
    )
    assert result.exit_code == 0, result.output


#: GGEXT_LONGER=100 runs a hundred times as many mutations.
LONGER = int(os.environ.get("GGEXT_LONGER", "1"))

# mutations ---------------------------------------------------------------------------------------

HEADER, DATA = parts()
HEADER_BYTES = json.dumps({name: HEADER[name] for name in list(HEADER)[:6]}).encode()
CONFIG = json.loads((GOOD / "config.json").read_text())

mutations = st.lists(
    st.tuples(
        st.sampled_from(("replace", "insert", "delete", "repeat")),
        st.integers(0, len(HEADER_BYTES) - 1),
        st.integers(1, 40),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from((b"-", b"9" * 19, b"1e9", b"null", b'"', b"{}", b"]")),
        ),
    ),
    min_size=1,
    max_size=4,
)


def mutated(text: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, at, length, new in changes:
        at %= len(text) + 1
        if kind == "replace":
            text = text[:at] + new + text[at + len(new) :]
        elif kind == "insert":
            text = text[:at] + new + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + length :]
        else:
            text = text[:at] + text[at : at + length] * 2 + text[at + length :]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        Hostile(lambda _: None, ""), tmp_path_factory.mktemp("hostile") / "mutated"
    )


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@given(changes=mutations, length=st.one_of(st.none(), st.integers(0, (1 << 64) - 1)))
@settings(
    max_examples=400 * LONGER,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_mutated_safetensors_headers(
    folder: Path, changes: list[Any], length: int | None
) -> None:
    text = mutated(HEADER_BYTES, changes)
    write(
        folder / WEIGHTS,
        struct.pack("<Q", len(text) if length is None else length)
        + text
        + DATA[:200_000],
    )
    try:
        with contextlib.suppress(GgextError):
            for tensor in read_tensors(folder).values():
                if tensor.dtype in ("F32", "BF16", "F16"):
                    tensor.array().reshape(-1)[:1].sum()
    finally:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(GOOD / WEIGHTS)


ROPE_KEYS = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "quant_method",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.integers(0, 1 << 31),
        st.integers(0, 300),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            (
                "yarn",
                "longrope",
                "llama3",
                "dynamic",
                "linear",
                "default",
                "silu",
                "mistral",
                "qwen3_moe",
                "fp8",
            )
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(ROPE_KEYS),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=8,
)
KEYS = (
    *CONFIG,
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "partial_rotary_factor",
    "quantization_config",
    "num_experts",
    "moe_intermediate_size",
    "num_local_experts",
    "text_config",
    "layer_types",
)


@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(set(KEYS))), values, min_size=1, max_size=3
    )
)
@settings(
    max_examples=300 * LONGER,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_mutated_configurations(folder: Path, changes: dict[str, Any]) -> None:
    write(folder / "config.json", json.dumps(CONFIG | changes).encode())
    with contextlib.suppress(GgextError):
        plan(ConvertOptions(folder, folder.parent / "out.gguf"))
