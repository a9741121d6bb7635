"""DeepSeek 4 as it is published: MXFP4 stays so, float8 becomes bfloat16, bit for bit the values
that transformers loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_rows import ROWS
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from published_deepseek4 import publish
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import BF16, F16, F32, I32, MXFP4
from ggext.verify import verify

pytest.importorskip("transformers")

#: Whole blocks of 128 rows, or one.
SIZES = {"head_dim": 64, "partial_rotary_factor": 0.25}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    plain = make_model(
        folder / "plain", "deepseek_v4", **ROWS["deepseek_v4-own"].config | SIZES
    )
    return publish(plain, folder / "published")


def values_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    gguf = read_gguf(path)
    found = {}
    for name, info in gguf.tensors.items():
        kind = GGMLQuantizationType(info.type)
        data = np.frombuffer(gguf.tensor_data(name), np.uint8)
        if info.type == I32:
            found[name] = data.view("<i4").astype("f4")
        else:
            found[name] = dequantize(data.reshape(1, -1), kind).ravel()
    return found


def test_the_values_are_those_that_transformers_loads(
    published: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(published)
    config.quantization_config = {**config.quantization_config, "dequantize": True}
    judge = AutoModelForCausalLM.from_pretrained(published, config=config, dtype="auto")
    loaded = tmp_path / "loaded"  # under the names that it has in memory
    shutil.copytree(published, loaded)
    judge.config.save_pretrained(loaded)
    tensors = {name: t.contiguous() for name, t in judge.state_dict().items()}
    save_file(tensors, loaded / "model.safetensors", {"format": "pt"})
    convert(ConvertOptions(published, tmp_path / "ours.gguf"))
    convert(ConvertOptions(loaded, tmp_path / "theirs.gguf"))
    ours, theirs = (values_of(tmp_path / f"{n}.gguf") for n in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert np.array_equal(values, theirs[name]), name
    types = {
        name: info.type
        for name, info in read_gguf(tmp_path / "ours.gguf").tensors.items()
    }
    assert types["blk.2.ffn_down_exps.weight"] == MXFP4
    assert types["blk.2.attn_q_a.weight"] == BF16
    assert types["blk.0.ffn_gate_tid2eid.weight"] == I32


@pytest.mark.slow
def test_llama_cpp_runs_it_as_transformers_does(
    published: Path, tmp_path: Path
) -> None:
    """It rounds what goes into MXFP4 matrices to 8 bits, which is the difference."""
    convert(ConvertOptions(published, tmp_path / "out.gguf"))
    report = verify(tmp_path / "out.gguf", published, levels=["logits"], tolerance=1e-3)
    assert report.passed, report


def test_a_quantizer_leaves_what_mixes_streams(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    convert(ConvertOptions(published, tmp_path / "out.gguf", type="q4_k_m"))
    types = {
        name: t.type for name, t in read_gguf(tmp_path / "out.gguf").tensors.items()
    }
    streams = {name for name in types if "hc_" in name or "_ape." in name}
    assert len(streams) == 4 * 6 + 3 + 5
    assert {types[name] for name in streams} == {F32}
    assert types["blk.0.ffn_gate_tid2eid.weight"] == I32
    assert types["blk.2.attn_kv.weight"] not in (F32, F16, BF16)


def test_an_expert_that_is_not_there_is_refused(
    published: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.ffn.gate.tid2eid"][3, 1] = 8
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match="numbers of 0 to 8; they must be from 0 to 7"
    ):
        convert(ConvertOptions(folder, tmp_path / "out.gguf"))
    assert not (tmp_path / "out.gguf").exists()
