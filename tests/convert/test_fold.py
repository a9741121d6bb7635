"""A gain folded into the query weights: the same logits, and keys whose length survives context
shifts."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_llama
from tiny_gguf import HEAD, N_HEADS, write_random

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.convert.fold import SCALES_OF_TYPE, Rounding, scale_bytes, scale_values
from ggext.errors import GgextError, GgufError, RopeError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.rope.decode import QUERY_SCALE, decode
from ggext.rope.encode import EncodingName, encode
from ggext.rope.scaling import RopeGeometry, RopeScaling

GEOMETRY = RopeGeometry(
    n_rot=64, head_dim=64, base=10000.0, layout="norm", trained_context=4096
)
YARN = RopeScaling("yarn", factor=4)
BETAS = RopeScaling("yarn", factor=4, beta_slow=0.1, attention_factor=1.2)


def bake(
    model: Path,
    out: Path,
    rope: RopeScaling | None,
    encoding: EncodingName | None = "folded",
    **options: Any,
) -> GgufFile:
    convert(ConvertOptions(model, out, rope, encoding=encoding, **options))
    return read_gguf(out)


def floats(gguf: GgufFile, name: str) -> np.ndarray[Any, Any]:
    return gguf.float_tensor(name).reshape(gguf.tensors[name].shape[::-1])


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


# blocks of quantized types

_K_QUANTS = {
    "Q2_K": 84,
    "Q3_K": 110,
    "Q4_K": 144,
    "Q5_K": 176,
    "Q6_K": 210,
    "IQ4_NL": 18,
    "IQ4_XS": 136,
}


@pytest.mark.parametrize("name", SCALES_OF_TYPE)
def test_scaled_blocks_are_the_scaled_values(name: str) -> None:
    """What the gguf library makes of the scaled blocks: each float16 scale is within half a unit of
    its last place."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[name]
    block_bytes = GGML_QUANT_SIZES[kind][1]
    rows = np.random.default_rng(0).integers(0, 256, (6, 3 * block_bytes), np.uint8)
    blocks = rows.reshape(6, 3, block_bytes)
    for offset in SCALES_OF_TYPE[name]:
        scales = np.random.default_rng(1).uniform(0.01, 0.5, (6, 3)).astype("<f2")
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    scale = np.array([1.0, 1.3, 1.3, 1.0, 1.3, 0.7])
    rounding = Rounding()
    scaled = scale_bytes(rows, kind.value, scale, rounding)
    before, after = dequantize(rows, kind), dequantize(scaled, kind)
    largest = np.abs(before).max()
    assert np.array_equal(before[[0, 3]], after[[0, 3]])
    assert np.abs(after - before * scale[:, None]).max() <= largest * 1.3 * 2**-10
    assert 0 < rounding.rms <= rounding.worst <= 2**-11


def test_what_cannot_be_scaled_is_refused() -> None:
    from gguf.constants import GGMLQuantizationType

    full = np.frombuffer(np.float16(60000).tobytes() + bytes(32), np.uint8)[None]
    with pytest.raises(GgufError, match=r"block scale of 60000 times 1.3 does not fit"):
        scale_bytes(full, GGMLQuantizationType.Q8_0.value, np.array([1.3]), Rounding())
    with pytest.raises(GgufError, match=r"MXFP4, whose scales are not float16"):
        scale_bytes(
            np.zeros((1, 17), np.uint8),
            GGMLQuantizationType.MXFP4.value,
            np.array([1.3]),
            Rounding(),
        )
    largest = {
        "F16": (1, np.float16([[60000]])),
        "F32": (0, np.float32([[3e38]])),
        "BF16": (30, np.uint16([[0x7F7F]])),
    }
    for name, (kind, values) in largest.items():
        with pytest.raises(GgufError, match=f"does not fit into {name}"):
            scale_bytes(values.view(np.uint8), kind, np.array([1.3]), Rounding())
    with pytest.raises(GgufError, match="does not fit into F32"):
        scale_values(np.float32([[3e38]]), np.array([1.3]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "bits", [0x7F80, 0x7FC0, 0x7FA0]
)  # infinite, a NaN, one that signals
def test_weights_that_are_no_numbers_stay_what_they_are(bits: int) -> None:
    rounding = Rounding()
    rows = np.uint16([[bits, 0x3F80]]).view(np.uint8)
    scaled = scale_bytes(rows, 30, np.array([2.0]), rounding).view(np.uint16)
    assert not np.isfinite(bfloat16_values(scaled)[0, 0])
    assert scaled[0, 1] == 0x4000
    assert rounding.worst == rounding.rms == 0


# whole files

pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


PARITY: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "keys": (YARN, {}),
    "biases": (YARN, {"attention_bias": True}),
    "tensor": (
        RopeScaling(
            "yarn", factor=4, beta_fast=16, beta_slow=0.1, attention_factor=1.3
        ),
        {},
    ),
    "linear-gain": (
        RopeScaling("linear", factor=4, attention_factor=1.2),
        {"num_key_value_heads": 4},
    ),
    "none-gain": (RopeScaling("none", attention_factor=1.2), {}),
}


@pytest.mark.parametrize(("scaling", "config"), PARITY.values(), ids=PARITY)
def test_folded_logits_equal_transformers(
    tmp_path: Path, scaling: RopeScaling, config: dict[str, Any]
) -> None:
    from ggext.verify import verify

    model = make_llama(tmp_path / "model", **config)
    bake(model, tmp_path / "out.gguf", scaling)
    report = verify(tmp_path / "out.gguf", model)
    assert report.passed, report
    logits = [c.value for c in report.checks if c.level == "logits"]
    assert len(logits) == (1 if scaling.method == "none" else 2)
    assert max(logits) <= 1e-6


def logits_of(path: Path, count: int = 200) -> np.ndarray[Any, Any]:
    from ggext.runtime.engine import Model, Session, SessionOptions

    with Model.open(path) as model:
        ids = [(7 * i + i // 5) % (model.n_vocab - 2) + 2 for i in range(count)]
        with Session(
            model, SessionOptions(n_ctx=count, kv_type="f32", flash_attention=False)
        ) as session:
            return session.logits(ids)


def divergence(expected: Path, actual: Path) -> float:
    from ggext.proof import reference

    kl, _ = reference.divergence(logits_of(expected), logits_of(actual))
    return float(kl.mean())


FOLDED = [
    ("llama", True),
    ("mistral3", False),
    ("qwen2", False),
    ("qwen2", True),
    ("qwen3", False),
    ("qwen3moe", False),
    ("qwen2moe", False),
    ("apertus", False),
    ("arcee", False),
    ("cohere2", False),
    ("ernie4_5", False),
    ("falcon", False),
    ("glm4", False),
    ("gptneox", False),
    ("granite", False),
    ("nemotron", False),
    ("olmo2", False),
    ("phi2", False),
    ("seed_oss", False),
    ("smollm3", False),
    ("starcoder2", False),
    ("dots1", False),
    ("ernie4_5-moe", False),
    ("glm4moe", False),
    ("granitemoe", False),
    ("olmoe", False),
]


@pytest.mark.parametrize(("arch", "fused"), FOLDED)
def test_every_architecture_folds_where_its_queries_are_made(
    tmp_path: Path, arch: str, fused: bool
) -> None:
    """Against the same model with the gain in its keys."""
    model = write_random(tmp_path / "model.gguf", arch, fused=fused)
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys")
    bake(model, tmp_path / "folded.gguf", YARN)
    wrong = bake(
        model,
        tmp_path / "wrong.gguf",
        RopeScaling("yarn", factor=4, attention_factor=1.0),
        "keys",
    )
    assert divergence(keys.path, tmp_path / "folded.gguf") <= 1e-6
    assert divergence(keys.path, wrong.path) > 1e-4


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("hunyuan-dense", "after their rotation, which takes the gain away"),
        ("llama4", "after their rotation, which takes the gain away"),
        ("granitehybrid", "layer 0 has none of"),
        ("lfm2", "layer 0 has none of"),
        ("qwen35", "llama.cpp never shifts a context of qwen35"),
        ("qwen3next", "layer 0 has none of"),
        ("minicpm3", "layer 0 has none of"),
        ("stablelm", "has a row for each head"),
    ],
)
def test_where_a_gain_cannot_be_folded_it_is_refused(
    tmp_path: Path, arch: str, reason: str
) -> None:
    with pytest.raises(RopeError, match=reason):
        bake(
            write_random(tmp_path / "model.gguf", arch), tmp_path / "folded.gguf", YARN
        )


def test_only_the_rotated_query_rows_are_scaled(tmp_path: Path) -> None:
    model = read_gguf(write_random(tmp_path / "model.gguf", "qwen2", fused=True))
    gguf = bake(model.path, tmp_path / "folded.gguf", YARN)
    scale = gguf.get(f"qwen2.{QUERY_SCALE}")
    for name in ("blk.1.attn_qkv.weight", "blk.1.attn_qkv.bias"):
        before, after = floats(model, name), floats(gguf, name)
        queries = N_HEADS * HEAD
        assert np.allclose(after[:queries], before[:queries] * scale, rtol=1e-7)
        assert np.array_equal(after[queries:], before[queries:])
    changed = [
        n
        for n in model.tensors
        if bytes(model.tensor_data(n)) != bytes(gguf.tensor_data(n))
    ]
    assert changed == [
        f"blk.{i}.attn_qkv.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_partial_rotation_scales_the_first_dimensions_of_each_head(
    tmp_path: Path,
) -> None:
    from ggext.convert.fold import fold_query
    from ggext.convert.sources import open_source

    source = open_source(write_random(tmp_path / "model.gguf", "qwen2"))
    geometry = RopeGeometry(HEAD // 2, HEAD, 10000.0, "neox", 64)

    def keys(heads: Any, layers: int) -> dict[str, Any]:
        return {"attention.head_count": heads, "block_count": layers}

    folded = fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 2), 1.3)
    scale = next(t.row_scale for t in folded if t.name == "blk.0.attn_q.weight")
    assert scale is not None
    assert scale.reshape(N_HEADS, HEAD).tolist() == [[1.3] * 8 + [1.0] * 8] * N_HEADS
    with pytest.raises(RopeError, match="layer 2 has none of"):
        fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 3), 1.3)
    with pytest.raises(
        RopeError, match="at most 512 layers"
    ):  # at once, however many the file claims
        fold_query(source.tensors, "qwen2", geometry, keys(N_HEADS, 1 << 32), 1.3)
    with pytest.raises(RopeError, match="layers that are alike"):
        fold_query(source.tensors, "qwen2", geometry, keys([4, 2], 2), 1.3)


def test_a_folded_file_is_unfolded_before_the_next_bake(
    checkpoint: Path, tmp_path: Path
) -> None:
    plain = bake(checkpoint, tmp_path / "plain.gguf", None, None)
    folded = bake(checkpoint, tmp_path / "folded.gguf", YARN)
    assert "folded" in folded.get("ggext.recipe")
    back = bake(folded.path, tmp_path / "back.gguf", RopeScaling("none"), None)
    again = bake(folded.path, tmp_path / "again.gguf", RopeScaling("yarn", factor=2))
    direct = bake(checkpoint, tmp_path / "direct.gguf", RopeScaling("yarn", factor=2))
    for one, other in ((back, plain), (again, direct)):
        for key in one.fields.keys() | other.fields.keys():
            assert key == "ggext.recipe" or one.fields[key] == other.fields[key]
        for name in plain.tensors:
            # float32 twice: at most one unit in the last place, and nothing but the queries is
            # touched
            tolerance = 2**-22 if "attn_q." in name else 0
            assert np.allclose(
                floats(one, name), floats(other, name), rtol=tolerance, atol=0
            ), name


def test_16_bit_weights_come_back_within_their_rounding(
    checkpoint: Path, tmp_path: Path
) -> None:
    for kind, unit in (("f16", 2**-11), ("bf16", 2**-8)):
        plain = bake(checkpoint, tmp_path / f"{kind}.gguf", None, None, type=kind)
        folded = bake(plain.path, tmp_path / f"{kind}-folded.gguf", YARN)
        back = bake(
            folded.path, tmp_path / f"{kind}-back.gguf", RopeScaling("none"), None
        )
        name = "blk.0.attn_q.weight"
        raw = [np.frombuffer(g.tensor_data(name), np.uint16) for g in (plain, back)]
        one, other = (
            r.view("<f2").astype("f4")
            if kind == "f16"
            else (r.astype("<u4") << 16).view("<f4")
            for r in raw
        )
        assert np.abs(one - other).max() <= 2 * unit * np.abs(one).max()


def test_another_form_of_the_same_scaling(checkpoint: Path, tmp_path: Path) -> None:
    """--encoding alone rewrites what a GGUF file says, also one that another program made."""
    from ggext.gguf.writer import TensorToWrite, write_gguf

    keys = bake(
        checkpoint,
        tmp_path / "keys.gguf",
        RopeScaling("yarn", factor=4, attention_factor=1.3),
        "keys",
    )
    fields = {k: f for k, f in keys.fields.items() if k != "ggext.recipe"}
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [keys.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in keys.tensors.values()
    ]
    write_gguf(tmp_path / "foreign.gguf", fields, tensors)
    for source in ("keys", "foreign"):
        folded = bake(
            tmp_path / f"{source}.gguf", tmp_path / f"{source}-folded.gguf", None
        )
        assert folded.get("llama.context_length") == 256
        assert divergence(keys.path, folded.path) <= 1e-6


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_XS"]
)
def test_quantized_files_are_folded_in_their_block_scales(
    tmp_path: Path, kind: str
) -> None:
    """The cost in KL is far below what the quantization itself cost."""
    model = make_llama(
        tmp_path / "model",
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
    )
    exact = bake(model, tmp_path / "f32.gguf", YARN, "keys")
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys", type=kind)
    result = CliRunner().invoke(
        main,
        ["convert", str(keys.path), str(tmp_path / "f.gguf"), "--encoding", "folded"],
    )
    assert result.exit_code == 0, result.output
    assert "roll their context: safe (folded)" in result.output
    assert "folding: rounding of the query weights rms" in result.output
    cost, quantizing = (
        divergence(keys.path, tmp_path / "f.gguf"),
        divergence(exact.path, keys.path),
    )
    assert cost < quantizing / 10
    assert divergence(exact.path, tmp_path / "f.gguf") < 1.2 * quantizing


def test_a_checkpoint_is_folded_before_it_is_quantized(
    checkpoint: Path, tmp_path: Path
) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    exact = bake(checkpoint, tmp_path / "f32.gguf", YARN)
    name = "blk.0.attn_q.weight"
    for kind, out in (
        ("q8_0", GGMLQuantizationType.Q8_0),
        ("f16", GGMLQuantizationType.F16),
    ):
        gguf = bake(checkpoint, tmp_path / f"{kind}.gguf", YARN, type=kind)
        raw = np.frombuffer(gguf.tensor_data(name), np.uint8).reshape(128, -1)
        values = dequantize(raw if kind == "q8_0" else raw.view("<f2"), out)
        assert np.abs(values - floats(exact, name)).max() <= np.abs(values).max() * (
            1 / 254 + 2**-11
        )


# context shifts


def k_norms(data: bytes) -> np.ndarray[Any, Any]:
    """Norm of each cell's K in layer 0 of a sequence's state (llama_state_seq_get_data)."""
    _, _, _, cells = struct.unpack_from("<IiII", data)
    at = 16
    for _ in range(cells):
        _, n_seq = struct.unpack_from("<iI", data, at)
        at += 8 + 4 * n_seq
    _, _, kind, row_bytes = struct.unpack_from("<IIiQ", data, at)
    assert kind == 0  # float32
    rows = np.frombuffer(data, "<f4", cells * row_bytes // 4, at + 20).reshape(
        cells, -1
    )
    return np.linalg.norm(rows.astype("f8"), axis=1)


def norms_after_shifts(path: Path, shifts: int) -> np.ndarray[Any, Any]:
    """K norms of the oldest cells that are never evicted, relative to those before the shifts."""
    import ctypes

    from ggext.runtime import llama
    from ggext.runtime.engine import Model, Session, SessionOptions

    lib = llama.lib()
    with (
        Model.open(path) as model,
        Session(model, SessionOptions(n_ctx=256, kv_type="f32")) as session,
    ):
        context, memory = session.cache.handle, session.cache._memory

        def state() -> np.ndarray[Any, Any]:
            size = lib.llama_state_seq_get_size(context, 0)
            buffer = (ctypes.c_uint8 * size)()
            return k_norms(
                bytes(buffer[: lib.llama_state_seq_get_data(context, buffer, size, 0)])
            )

        session.evaluate([5] * 130)
        before = state()
        for step in range(shifts):
            assert lib.llama_memory_seq_rm(memory, 0, 0, 1)
            lib.llama_memory_seq_add(memory, 0, 1, -1, -1)
            token = (ctypes.c_int32 * 1)(7 + step % 3)
            assert lib.llama_decode(context, lib.llama_batch_get_one(token, 1)) == 0
        after = state()
    kept = 130 - shifts  # token 5 all along, so every kept cell had the same norm
    survivors = (
        np.sort(np.abs(after / before[0] - 1))[:kept] if shifts else after / before
    )
    return np.asarray(survivors)


def test_k_norms_survive_100_shifts_only_when_folded(
    checkpoint: Path, tmp_path: Path
) -> None:
    bake(checkpoint, tmp_path / "folded.gguf", YARN)
    bake(checkpoint, tmp_path / "keys.gguf", YARN, "keys")
    assert norms_after_shifts(tmp_path / "folded.gguf", 100).max() <= 1e-3
    destroyed = norms_after_shifts(tmp_path / "keys.gguf", 3)
    assert np.median(destroyed) == pytest.approx(1.1386294**3 - 1, rel=1e-3)


def test_encoding_on_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        return (
            CliRunner()
            .invoke(
                main, ["convert", str(checkpoint), str(tmp_path / "x.gguf"), *arguments]
            )
            .output
        )

    assert "encoding: folded, " in run("--yarn", "4", "--dry-run")
    assert ", safe to roll" in run("--yarn", "4", "--dry-run")
    assert "encoding: folded" in run("--yarn", "4", "--encoding", "folded", "--dry-run")
    assert "not safe to roll" in run("--yarn", "4", "--encoding", "keys", "--dry-run")
    assert "is not one of" in run("--yarn", "4", "--encoding", "magic")
    assert "nothing for --encoding folded to do: keys says it all" in run(
        "--linear", "4", "--encoding", "folded"
    )
    for encoding, words in (
        ("folded", "attention factor 1.13863\n              safe to roll"),
        ("keys", "1.13863\n              not safe to roll"),
    ):
        bake(checkpoint, tmp_path / f"{encoding}.gguf", YARN, encoding)  # type: ignore[arg-type]
        assert (
            words
            in CliRunner()
            .invoke(main, ["inspect", str(tmp_path / f"{encoding}.gguf")])
            .output
        )
    with pytest.raises(GgextError, match="cannot run yarn"):
        convert(ConvertOptions(checkpoint, tmp_path / "y.gguf", BETAS, encoding="keys"))


# what is chosen where no one names an encoding


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def choice(model: Path, **options: Any) -> tuple[str, str]:
    from ggext.convert import plan

    planned = plan(
        ConvertOptions(
            model, options.pop("out", model.with_name("new.gguf")), YARN, **options
        )
    )
    assert planned.encoding is not None
    return planned.encoding.name, planned.why_not_folded


def test_a_query_norm_takes_the_gain_by_default(tmp_path: Path) -> None:
    """Also in place, and undo gives every byte back."""
    model = write_random(tmp_path / "model.gguf", "qwen3")
    before = digest(model)
    keys = bake(model, tmp_path / "keys.gguf", YARN, "keys")
    beside = bake(model, tmp_path / "beside.gguf", YARN, None)
    convert(ConvertOptions(model, rope=YARN, in_place=True))
    in_place = read_gguf(model)
    for baked in (beside, in_place):
        assert '"encoding":"folded"' in baked.get("ggext.recipe")
        changed = [
            name
            for name in keys.tensors
            if bytes(keys.tensor_data(name)) != bytes(baked.tensor_data(name))
        ]
        assert changed == ["blk.0.attn_q_norm.weight", "blk.1.attn_q_norm.weight"]
        assert divergence(keys.path, baked.path) <= 1e-6
        assert norms_after_shifts(baked.path, 100).max() <= 1e-3
    from ggext.gguf.inplace import undo

    convert(ConvertOptions(model, rope=RopeScaling("yarn", factor=2), in_place=True))
    again = bake(
        beside.path, tmp_path / "again.gguf", RopeScaling("yarn", factor=2), None
    )
    for name in again.tensors:
        assert bytes(again.tensor_data(name)) == bytes(
            read_gguf(model).tensor_data(name)
        )
    assert undo(model) == 2
    assert digest(model) == before


def test_rope_none_takes_the_gain_out_of_the_norms_in_place(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model.gguf", "qwen3")
    plain = read_gguf(model)
    name = "blk.1.attn_q_norm.weight"
    unscaled = floats(plain, name).copy()
    convert(ConvertOptions(model, rope=YARN, in_place=True))
    assert not np.allclose(floats(read_gguf(model), name), unscaled, rtol=1e-3)
    convert(ConvertOptions(model, rope=RopeScaling("none"), in_place=True))
    back = read_gguf(model)
    assert np.allclose(floats(back, name), unscaled, rtol=2**-22, atol=0)
    rope = [key for key in back.fields if ".rope." in key or key == "ggext.recipe"]
    assert rope == [key for key in plain.fields if ".rope." in key]


def test_weights_that_are_written_anyway_take_the_gain(
    checkpoint: Path, tmp_path: Path
) -> None:
    for kind in ("auto", "f16", "bf16", "q8_0"):
        assert choice(checkpoint, out=tmp_path / "x.gguf", type=kind) == (
            "folded",
            "",
        ), kind
    f16 = bake(checkpoint, tmp_path / "f16.gguf", None, None, type="f16").path
    assert choice(f16) == ("folded", "")
    q8 = bake(checkpoint, tmp_path / "q8.gguf", None, None, type="q8_0").path
    assert choice(q8) == (
        "keys",
        "the query weights are Q8_0 already and stay as they are",
    )
    stay = "a change in place leaves the query weights as they are"
    assert choice(f16, out=None, in_place=True) == ("keys", stay)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("gemma3", "would give its sliding-window layers the gain that cancels YaRN's"),
        ("hunyuan-dense", "norms queries and keys after their rotation"),
        ("deepseek2", "has no rows of its own to fold a gain into"),
        ("smollm3", "layers that have no RoPE"),
        ("stablelm", "has a row for each head"),
        ("minicpm3", "layer 0 has none of"),
    ],
)
def test_where_folding_cannot_be_the_keys_stay_and_the_reason_is_told(
    tmp_path: Path, arch: str, reason: str
) -> None:
    """The same words from the choice and from --encoding folded, which is refused where it cannot
    be done at all."""
    model = write_random(tmp_path / "model.gguf", arch)
    name, why = choice(model)
    assert name == "keys"
    assert reason in why
    if arch != "smollm3":
        with pytest.raises(RopeError, match=r"choose encoding='keys'") as refused:
            bake(model, tmp_path / "folded.gguf", YARN)
        assert why in str(refused.value)


def test_norms_in_other_parts_are_not_changed_in_place(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model.gguf", "qwen3")
    done = convert(ConvertOptions(model, tmp_path / "parts.gguf", split=30_000))
    assert len(done.files) > 2
    name, why = choice(done.files[0], out=None, in_place=True)
    assert name == "keys"
    assert (
        why == "the model is in several parts, and only the first is changed in place"
    )


def test_clipped_queries_are_not_scaled(tmp_path: Path) -> None:
    """Folding into what is clipped afterwards changed OLMo's logits by a KL of 0.1."""
    from tiny import make_model

    model = make_model(tmp_path / "olmo", "olmo", clip_qkv=1.5)
    out = tmp_path / "out.gguf"
    asked = ConvertOptions(model, out, RopeScaling("yarn", factor=4))
    planned = convert(asked)
    assert planned.encoding is not None
    assert planned.encoding.name == "keys"
    assert "clips its queries" in planned.why_not_folded
    with pytest.raises(RopeError, match="clips its queries"):
        convert(
            ConvertOptions(model, tmp_path / "b.gguf", asked.rope, encoding="folded")
        )
