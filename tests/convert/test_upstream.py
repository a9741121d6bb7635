"""Twenty-one families next to llama.cpp's own converter: the same tensors bit for bit, every other
difference with its reason.

``GGEXT_LLAMA_CPP``: a checkout of llama.cpp. Its converter takes some seconds to start, for each
family.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from compare_with_upstream import compare_family, differences
from tiny_gguf import base_of, write_random

from ggext.gguf.open import read_gguf


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    path = Path(os.environ.get("GGEXT_LLAMA_CPP") or "/nonexistent")
    if not (path / "convert_hf_to_gguf.py").is_file():
        pytest.skip("GGEXT_LLAMA_CPP names no checkout of llama.cpp")
    return path


@pytest.mark.parametrize(
    "name",
    [
        *(
            "afmoe",
            "laguna",
            "apertus",
            "deepseek_v3",
            "deepseek_v4-own",
            "falcon-40b",
            "granite",
            "llama",
            "qwen3_moe",
        ),
        *(
            "bloom",
            "gpt2",
            "gpt_bigcode",
            "granitemoehybrid-experts",
            "granitemoehybrid-mamba",
            "mpt",
            "qwen3_vl_moe",
        ),
        *(
            "deepseek_v32",
            "gemma4_text",
            "glm_moe_dsa",
            "hy_v3",
            "minimax_m3_vl-dense",
        ),
    ],
)
def test_the_same_tensors_and_every_difference_has_a_reason(
    name: str, llama_cpp: Path
) -> None:
    same, found = compare_family(llama_cpp, name)
    assert same > 0
    assert [d for d in found if not d.reason] == []
    assert not any(d.what.startswith("tensor ") for d in found)


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """A key more, a value, a tensor's bits, a tensor's shape."""
    name = "blk.0.attn_k.weight"
    values = base_of("llama")[1]
    one = write_random(tmp_path / "one.gguf", "llama")
    other = write_random(
        tmp_path / "other.gguf",
        "llama",
        extra_keys={"llama.block_count": 3, "general.license": "mit"},
        extra_tensors={
            name: values[name] + 1,
            "output_norm.weight": values["output_norm.weight"][:8],
        },
    )
    found = {d.what: d for d in differences(read_gguf(one), read_gguf(other))}
    assert set(found) == {
        "llama.block_count",
        "general.license",
        f"tensor {name}",
        "tensor output_norm.weight",
    }
    assert all(d.reason == "" for d in found.values())
    assert (found["llama.block_count"].ours, found["llama.block_count"].upstream) == (
        "2",
        "3",
    )
    assert found[f"tensor {name}"].upstream == "worst |Δ| 1.0e+00"
    assert list(differences(read_gguf(one), read_gguf(one))) == []
