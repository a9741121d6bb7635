"""The table of what architectures do with RoPE, derived again from the installed llama.cpp with
tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import HEAD, base_of, write_random

from ggext.errors import GgufError, ModelError, RopeError
from ggext.llama_cpp_facts.indexer import IN_BLOCKS
from ggext.rope.capabilities import CAPABILITIES
from ggext.rope.decode import decode
from ggext.rope.encode import encode
from ggext.rope.keys import (
    BETA_FAST,
    BETA_SLOW,
    LOG_MULTIPLIER,
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
)
from ggext.rope.scaling import RopeGeometry, RopeScaling

pytest.importorskip("llama_cpp")

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
TOKENS = [(7 * i) % 300 + 3 for i in range(100)]


def logits(path: Path, **options: Any) -> np.ndarray[Any, Any]:
    from ggext.runtime.engine import Model, Session, SessionOptions

    options = {"n_ctx": 128, "kv_type": "f32"} | options
    with Model.open(path) as model:
        options["flash_attention"] = model.architecture in IN_BLOCKS
        with Session(model, SessionOptions(**options)) as session:
            return session.logits(TOKENS)


class Library:
    """What the installed library does with variants of one architecture's model."""

    def __init__(self, arch: str, folder: Path) -> None:
        self.arch, self.folder, self.count = arch, folder, 0
        self.fields, self.tensors = base_of(arch)
        self.factors = np.linspace(
            1, 3, self.fields[f"{arch}.rope.dimension_count"] // 2, dtype="<f4"
        )

    def logits(
        self,
        keys: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    ) -> np.ndarray[Any, Any] | None:
        """``None`` where the model does not load."""
        self.count += 1
        path = self.folder / f"{self.count}.gguf"
        prefixed = {f"{self.arch}.{k}": v for k, v in (keys or {}).items()}
        write_random(path, self.arch, extra_keys=prefixed, extra_tensors=tensors)
        try:
            return logits(path)
        except (ModelError, GgufError):
            return None

    def differ(
        self, one: np.ndarray[Any, Any] | None, other: np.ndarray[Any, Any] | None
    ) -> bool:
        assert one is not None
        assert other is not None
        return bool(np.abs(one - other).max() > 1e-2)


@pytest.fixture
def library(request: pytest.FixtureRequest, tmp_path: Path) -> Library:
    return Library(request.param, tmp_path)


every_architecture = pytest.mark.parametrize("library", CAPABILITIES, indirect=True)


@every_architecture
def test_layout(library: Library, tmp_path: Path) -> None:
    from ggext.runtime import llama
    from ggext.runtime.engine import Model

    with Model.open(write_random(tmp_path / "model.gguf", library.arch)) as model:
        kind = llama.lib().llama_model_rope_type(model.open_handle())
    capability = CAPABILITIES[library.arch]
    expected = {
        ("norm", "none"): 0,
        ("neox", "none"): 2,
        ("neox", "blocks"): 8,
        ("neox", "interleaved"): 40,
    }
    assert kind == expected[capability.layout, capability.sections]


@every_architecture
def test_rope_freqs(library: Library) -> None:
    plain, scaled = (
        library.logits(),
        library.logits(tensors={ROPE_FREQS: library.factors}),
    )
    if library.arch == "falcon-h1":  # which loads them, and rotates without
        assert not library.differ(plain, scaled)
        return
    assert (scaled is not None) is CAPABILITIES[library.arch].loads_rope_freqs
    if scaled is not None:
        assert library.differ(plain, scaled)


@every_architecture
def test_rope_factors(library: Library) -> None:
    keys = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64}
    factors = {ROPE_LONG: library.factors, ROPE_SHORT: np.ones_like(library.factors)}
    plain, scaled, without = (
        library.logits(),
        library.logits(keys, factors),
        library.logits(tensors=factors),
    )
    found = (
        "always" if without is not None else "longrope" if scaled is not None else "no"
    )
    assert found == CAPABILITIES[library.arch].rope_factors
    if scaled is not None:
        assert library.differ(plain, scaled)


@every_architecture
def test_betas_and_log_multiplier(library: Library) -> None:
    yarn = library.logits(YARN)
    capability = CAPABILITIES[library.arch]
    assert (
        library.differ(yarn, library.logits(YARN | {BETA_FAST: 4.0, BETA_SLOW: 0.01}))
        is capability.reads_betas
    )
    assert (
        library.differ(yarn, library.logits(YARN | {LOG_MULTIPLIER: 1.0}))
        is capability.reads_log_multiplier
    )


@every_architecture
def test_query_norm(library: Library) -> None:
    norm = {
        n: np.full(a.shape, 2.0, "<f4")
        for n, a in library.tensors.items()
        if n.endswith("attn_q_norm.weight")
    }
    norm = norm or {
        f"blk.{i}.attn_q_norm.weight": np.full(HEAD, 2.0, "<f4") for i in (0, 1)
    }
    plain, normed = library.logits(), library.logits(tensors=norm)
    assert (normed is not None) is CAPABILITIES[library.arch].query_norm
    if normed is not None:
        assert library.differ(plain, normed)


# what an architecture that reads more is given

GEOMETRY = RopeGeometry(
    n_rot=128, head_dim=128, base=1e6, layout="norm", trained_context=4096
)
DEVSTRAL = RopeScaling(
    "yarn", factor=64, beta_fast=4, beta_slow=1, mscale=1.0, mscale_all_dim=0.0
)


def test_betas_are_keys_where_they_are_read() -> None:
    encoding = encode(DEVSTRAL, GEOMETRY, "mistral3")
    assert encoding.name == "keys"
    assert encoding.exactness.is_exact
    assert encoding.keys[BETA_FAST] == 4.0
    assert encode(DEVSTRAL, GEOMETRY, "llama").name == "tensor"


def test_the_keys_that_are_read_are_decoded() -> None:
    keys = {
        "rope.dimension_count": 128,
        "context_length": 4096 * 64,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 64.0,
        "rope.scaling.original_context_length": 4096,
    }
    gain = 1 + 0.1 * math.log(64)
    assert decode(keys, {}, "mistral3").attention_factor == pytest.approx(gain)
    assert decode(
        keys | {LOG_MULTIPLIER: 1.0}, {}, "mistral3"
    ).attention_factor == pytest.approx(1.0)
    assert decode(
        keys | {LOG_MULTIPLIER: 1.0}, {}, "llama"
    ).attention_factor == pytest.approx(gain)
    for key, value in ((BETA_FAST, 0.0), (BETA_SLOW, math.nan), (LOG_MULTIPLIER, -1.0)):
        with pytest.raises(RopeError, match=f"{key} is"):
            decode(keys | {key: value}, {}, "mistral3")


@pytest.mark.parametrize("encoding", ["keys", "folded"])
def test_beta_keys_are_the_tensor_of_the_same_table(
    tmp_path: Path, encoding: Any
) -> None:
    """llama.cpp's own reading of the beta keys against rope_freqs, which needs no reading."""
    from ggext.convert import ConvertOptions, convert
    from ggext.proof.reference import divergence

    model = write_random(tmp_path / "model.gguf", "mistral3")
    rope = RopeScaling("yarn", factor=4, beta_fast=8, beta_slow=0.05)
    convert(ConvertOptions(model, tmp_path / "a.gguf", rope, encoding=encoding))
    convert(ConvertOptions(model, tmp_path / "b.gguf", rope, encoding="tensor"))
    kl, _ = divergence(logits(tmp_path / "a.gguf"), logits(tmp_path / "b.gguf"))
    assert kl.mean() <= 1e-6


# context parameters, where neither a key nor a tensor is read


def test_betas_for_our_own_contexts() -> None:
    scaling = RopeScaling(
        "yarn", factor=32, beta_fast=1, beta_slow=1, mscale=1.0, mscale_all_dim=1.0
    )
    geometry = RopeGeometry(64, 64, 50000.0, "neox", 4096)  # Kimi-K2
    encoding = encode(scaling, geometry, "qwen2", "runtime")
    assert encoding.name == "runtime"
    assert encoding.exactness.is_exact
    assert encoding.elsewhere is not None
    assert encoding.elsewhere.frequency_error == pytest.approx(0.87, abs=0.3)
    assert (
        encode(RopeScaling("yarn", factor=4), GEOMETRY, "qwen2", "runtime").name
        == "keys"
    )
    with pytest.raises(RopeError, match="cannot run llama3"):
        encode(RopeScaling("llama3", factor=8), GEOMETRY, "qwen2", "runtime")


def test_lagunas_betas_are_exact_in_our_contexts_and_the_nearest_elsewhere() -> None:
    """Laguna XS.2 as published."""
    scaling = RopeScaling(
        "yarn",
        factor=64,
        original_context=4096,
        beta_fast=64,
        beta_slow=1,
        attention_factor=1.0,
    )
    geometry = RopeGeometry(
        *(64, 128, 5e5, "neox", 4096), sliding_base=1e4, sliding_n_rot=128
    )
    encoding = encode(scaling, geometry, "laguna")
    assert encoding.name == "runtime"
    assert encoding.exactness.is_exact
    assert encoding.elsewhere is not None
    assert encoding.elsewhere.frequency_error == pytest.approx(0.22, abs=0.02)


def test_a_range_that_is_not_rounded_gets_the_nearest_bounds() -> None:
    scaling = RopeScaling("yarn", factor=32, truncate=False)
    geometry = RopeGeometry(64, 64, 150000.0, "neox", 4096)  # gpt-oss
    encoding = encode(scaling, geometry, "qwen2", "runtime")
    assert not encoding.exactness.is_exact
    assert encoding.elsewhere is not None
    assert encoding.elsewhere.frequency_error == pytest.approx(0.76, abs=0.01)
    assert encoding.exactness.frequency_error == pytest.approx(0.324, abs=0.001)


def last_logits(path: Path, parameters: dict[str, float]) -> np.ndarray[Any, Any]:
    import ctypes

    from ggext.runtime import llama
    from ggext.runtime.engine import Model

    lib = llama.lib()
    with Model.open(path) as model:
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = 256
        params.type_k = params.type_v = lib.GGML_TYPE_F32
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        for name, value in parameters.items():
            setattr(params, name, value)
        context = lib.llama_init_from_model(model.open_handle(), params)
        ids = (ctypes.c_int32 * len(TOKENS))(*TOKENS)
        assert lib.llama_decode(context, lib.llama_batch_get_one(ids, len(TOKENS))) == 0
        result = np.ctypeslib.as_array(
            lib.llama_get_logits(context), (model.n_vocab,)
        ).copy()
        lib.llama_free(context)
    return result


@pytest.mark.parametrize("betas", [(16.0, 2.0), (1.0, 1.0), (40.0, 0.01)])
def test_a_context_with_the_parameters_computes_the_table(
    tmp_path: Path, betas: tuple[float, float]
) -> None:
    """The library with the betas of the runtime encoding, against rope_freqs with the same
    table."""
    from ggext.convert import ConvertOptions, convert
    from ggext.gguf.open import read_gguf
    from ggext.rope.keys import context_parameters

    rope = RopeScaling("yarn", factor=4, beta_fast=betas[0], beta_slow=betas[1])
    convert(
        ConvertOptions(
            write_random(tmp_path / "q.gguf", "qwen2"),
            tmp_path / "r.gguf",
            rope,
            encoding="runtime",
        )
    )
    parameters = context_parameters(read_gguf(tmp_path / "r.gguf").arch_keys())
    assert set(parameters) == {"yarn_beta_fast", "yarn_beta_slow"}
    model = write_random(tmp_path / "model.gguf", "llama")
    convert(ConvertOptions(model, tmp_path / "tensor.gguf", rope, encoding="tensor"))
    convert(
        ConvertOptions(
            model,
            tmp_path / "keys.gguf",
            RopeScaling("yarn", factor=4),
            encoding="keys",
        )
    )
    wanted = last_logits(tmp_path / "tensor.gguf", {})
    assert np.abs(wanted - last_logits(tmp_path / "keys.gguf", parameters)).max() < 1e-3
    assert np.abs(wanted - last_logits(tmp_path / "keys.gguf", {})).max() > 1e-2


def test_convert_tells_what_other_programs_make_of_it(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from ggext.cli import main

    model = write_random(tmp_path / "model.gguf", "qwen2")
    arguments = [
        "convert",
        str(model),
        str(tmp_path / "x.gguf"),
        "--yarn",
        "4",
        "--beta-slow",
        "0.1",
        "--dry-run",
    ]
    refused = CliRunner().invoke(main, [*arguments, "--encoding", "keys"])
    assert refused.exit_code == 1
    told = CliRunner().invoke(main, arguments).output  # auto finds nothing else
    assert "encoding: folded, exact" in told
    runtime = CliRunner().invoke(main, [*arguments, "--encoding", "runtime"]).output
    assert "encoding: runtime, exact" in runtime
    assert "in other programs: worst frequency error 0." in told
    assert "not exact" not in told
    assert (
        "not exact"
        in CliRunner()
        .invoke(main, [*arguments, "--encoding", "runtime", "--no-truncate"])
        .output
    )
    written = [
        "convert",
        str(model),
        str(tmp_path / "y.gguf"),
        "--yarn",
        "4",
        "--beta-slow",
        "0.1",
    ]
    assert CliRunner().invoke(main, [*written, "--encoding", "runtime"]).exit_code == 0
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "y.gguf")]).output
    assert "as other programs read it; ggext sets yarn_beta_fast" in inspected
