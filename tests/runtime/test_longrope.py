"""LongRoPE in a file: two factor tensors, picked by the size of the context, against transformers
on both sides."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.inspect import effective_table, inspect
from ggext.rope.decode import decode
from ggext.rope.encode import encode
from ggext.rope.keys import ROPE_LONG, ROPE_SHORT
from ggext.rope.methods import make_tables
from ggext.rope.scaling import RopeGeometry, RopeScaling

GEOMETRY = RopeGeometry(
    n_rot=32, head_dim=32, base=10000.0, layout="norm", trained_context=256
)
SHORT = tuple(1 + 0.02 * i for i in range(16))
LONG = tuple(1.05 + 0.6 * i for i in range(16))
LONGROPE = RopeScaling(
    "longrope", factor=4.0, original_context=256, short_factors=SHORT, long_factors=LONG
)


def test_keys_and_tensors() -> None:
    encoding = encode(LONGROPE, GEOMETRY, "llama")
    assert encoding.name == "tensor"
    assert encoding.exactness.is_exact
    assert not encoding.shift_safe
    assert encoding.keys == {
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": 256,
        "rope.scaling.attn_factor": pytest.approx(
            math.sqrt(1 + math.log(4) / math.log(256))
        ),
        "context_length": 1024,
        "rope.dimension_count": 32,
    }  # a factor would divide the angles once more
    assert encoding.tensors == {
        ROPE_LONG: pytest.approx(LONG),
        ROPE_SHORT: pytest.approx(SHORT),
    }


def test_the_context_picks_the_table() -> None:
    encoding = encode(LONGROPE, GEOMETRY, "llama")
    short, long = make_tables(LONGROPE, GEOMETRY)
    for n_ctx, wanted in (
        (1, short),
        (256, short),
        (257, long),
        (1024, long),
        (None, long),
    ):
        table = decode(encoding.keys, encoding.tensors, "llama", n_ctx)
        assert table.inv_freq == pytest.approx(wanted.inv_freq, rel=1e-7)
        assert table.lengths == wanted.lengths


def test_a_gain_that_is_folded() -> None:
    encoding = encode(LONGROPE, GEOMETRY, "llama", "folded")
    assert encoding.exactness.is_exact
    assert encoding.shift_safe
    assert encoding.query_scale == pytest.approx(1 + math.log(4) / math.log(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "qwen2"}, "qwen2 cannot run longrope"),
        ({"long_factors": LONG[:-1]}, "long_factors has 15 values"),
        ({"short_factors": LONG[:-1]}, "short_factors has 15 values"),
        ({"short_factors": (0.0, *LONG[1:])}, "short_factors holds 0.0"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    arch = change.pop("arch", "llama")
    with pytest.raises(RopeError, match=message):
        encode(replace(LONGROPE, **change), GEOMETRY, arch)


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ({}, {ROPE_LONG: LONG}, "does not load with the scaling type linear"),
        (
            {"rope.scaling.type": "longrope"},
            {},
            "there is no rope_factors_long.weight; llama.cpp would not scale",
        ),
        (
            {"rope.scaling.type": "longrope"},
            {ROPE_LONG: LONG[:3]},
            "rope_factors_long.weight has 3 values",
        ),
        (
            {"rope.scaling.type": "longrope"},
            {ROPE_LONG: (0.0,) * 16},
            "not a number above 0",
        ),
        (
            {"rope.scaling.type": "longrope"},
            {"rope_freqs.weight": LONG},
            "rope_freqs.weight, which llama.cpp does not",
        ),
    ],
)
def test_files_that_llama_cpp_would_not_read_so(
    keys: dict[str, Any], tensors: dict[str, tuple[float, ...]], message: str
) -> None:
    base = {
        "rope.dimension_count": 32,
        "context_length": 1024,
        "rope.scaling.original_context_length": 256,
    }
    with pytest.raises(RopeError, match=message):
        decode(base | keys, tensors, "llama")


pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose own config says LongRoPE."""
    from tiny import make_llama

    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": list(SHORT),
        "long_factor": list(LONG),
    }
    folder = tmp_path_factory.mktemp("models") / "longrope"
    return make_llama(
        folder,
        max_position_embeddings=1024,
        rope_parameters=rope | {"original_max_position_embeddings": 256},
    )


@pytest.fixture(scope="module")
def baked(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    out = tmp_path_factory.mktemp("files") / "tensor.gguf"
    convert(ConvertOptions(checkpoint, out))
    return read_gguf(out)


@pytest.fixture(scope="module")
def folded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    out = tmp_path_factory.mktemp("files") / "folded.gguf"
    convert(ConvertOptions(checkpoint, out, encoding="folded"))
    return read_gguf(out)


@pytest.mark.parametrize("tokens", [100, 256, 257, 600])
@pytest.mark.parametrize("name", ["baked", "folded"])
def test_logits_equal_transformers(
    checkpoint: Path, name: str, tokens: int, request: pytest.FixtureRequest
) -> None:
    from ggext.proof.logits import check_logits
    from ggext.verify import Expected

    wanted = Expected(LONGROPE, GEOMETRY, "")
    gguf = request.getfixturevalue(name)
    checks, _ = check_logits(gguf, checkpoint, wanted, tokens, None, lambda _: None)
    assert checks
    assert max(c.value for c in checks) <= 1e-6, checks


def test_inspect_tells_both_tables(baked: GgufFile) -> None:
    result = inspect(baked.path)
    assert result.method == "longrope"
    assert result.rope is not None
    assert result.short_rope is not None
    assert result.rope.inv_freq[-1] < result.short_rope.inv_freq[-1]
    assert effective_table(baked, 10) == result.short_rope
    output = CliRunner().invoke(main, ["inspect", str(baked.path)]).output
    assert "longrope ×4 as folded" in output
    assert "another table in a context made for at most 256 tokens" in output


def test_a_foreign_file_is_written_in_another_form(
    baked: GgufFile, folded: GgufFile, tmp_path: Path
) -> None:
    from ggext.gguf.writer import TensorToWrite, write_gguf

    fields = {k: f for k, f in baked.fields.items() if k != "ggext.recipe"}
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [baked.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in baked.tensors.values()
    ]
    write_gguf(tmp_path / "foreign.gguf", fields, tensors)
    convert(
        ConvertOptions(
            tmp_path / "foreign.gguf", tmp_path / "out.gguf", encoding="folded"
        )
    )
    again = read_gguf(tmp_path / "out.gguf")
    name = "blk.1.attn_q.weight"
    assert again.float_tensor(name) == pytest.approx(
        folded.float_tensor(name), rel=1e-6
    )
    assert again.float_tensor(ROPE_SHORT) == pytest.approx(SHORT)


def test_it_is_replaced_without_a_trace(baked: GgufFile, tmp_path: Path) -> None:
    convert(
        ConvertOptions(baked.path, tmp_path / "out.gguf", RopeScaling("yarn", factor=2))
    )
    gguf = read_gguf(tmp_path / "out.gguf")
    assert gguf.get("llama.rope.scaling.type") == "yarn"
    assert not [name for name in gguf.tensors if name.startswith("rope_")]
