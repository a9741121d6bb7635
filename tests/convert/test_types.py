"""``--tensor-type`` and ``--imatrix``: which type each tensor gets, made here or by llama.cpp's
quantizer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_llama
from tiny_gguf import write_random

from ggext.convert import ConvertOptions, convert
from ggext.convert.imatrix import read_imatrix
from ggext.errors import GgextError, GgufError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field, type_name
from ggext.gguf.writer import TensorToWrite, write_gguf

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 and 512 values, as K-quants need them."""
    return make_llama(
        tmp_path_factory.mktemp("models") / "wide",
        hidden_size=256,
        intermediate_size=512,
    )


def types_of(out: Path, model: Path, **options: Any) -> dict[str, str]:
    convert(ConvertOptions(model, out, **options))
    return {name: type_name(info.type) for name, info in read_gguf(out).tensors.items()}


def values_of(gguf: GgufFile, name: str) -> np.ndarray[Any, Any]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    info = gguf.tensors[name]
    raw = np.frombuffer(gguf.tensor_data(name), np.uint8).reshape(info.shape[1], -1)
    view = {"F32": "<f4", "F16": "<f2"}.get(type_name(info.type), "u1")
    return dequantize(raw.view(view), GGMLQuantizationType(info.type))


def test_some_tensors_in_another_native_type(wide: Path, tmp_path: Path) -> None:
    types = types_of(
        tmp_path / "x.gguf",
        wide,
        type="q8_0",
        tensor_types=("output=f16", "blk.*.ffn_*.weight=bf16", "*ffn_up=f32"),
    )
    assert types["output.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == types["blk.1.ffn_gate.weight"] == "BF16"
    assert types["blk.1.ffn_up.weight"] == "F32"  # the last pattern that matches holds
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "Q8_0"
    assert (
        types["blk.0.ffn_norm.weight"] == "F32"
    )  # one dimension: whatever the pattern
    whole = types_of(tmp_path / "f16.gguf", wide, type="f16")
    assert whole["output.weight"] == "F16"
    got, wanted = (
        bytes(read_gguf(tmp_path / n).tensor_data("output.weight"))
        for n in ("x.gguf", "f16.gguf")
    )
    assert got == wanted


def test_some_tensors_of_a_k_quant(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    plain = types_of(tmp_path / "plain.gguf", wide, type="Q4_K_M")
    types = types_of(
        tmp_path / "x.gguf",
        wide,
        type="Q4_K_M",
        tensor_types=("output=f16", "blk.0.attn_q=q8_0", "blk.1.*_gate=q5_K"),
    )
    changed = {name: kind for name, kind in types.items() if kind != plain[name]}
    assert changed == {
        "output.weight": "F16",
        "blk.0.attn_q.weight": "Q8_0",
        "blk.1.ffn_gate.weight": "Q5_K",
    }
    assert (
        read_gguf(tmp_path / "x.gguf").get("general.file_type") == 15
    )  # LLAMA_FTYPE_MOSTLY_Q4_K_M


def test_a_type_of_llama_cpps_beside_q8_0(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    types = types_of(
        tmp_path / "x.gguf", wide, type="q8_0", tensor_types=("blk.*.ffn_down=q4_K",)
    )
    assert types["blk.1.ffn_down.weight"] == "Q4_K"
    assert types["blk.1.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        (
            "f16",
            ["nothing.*=f32"],
            r"nothing\.\*=f32: no tensor of two or more dimensions has such a name",
        ),
        ("f16", ["*norm=f32"], "no tensor of two or more dimensions"),
        ("f16", ["output"], "write PATTERN=TYPE"),
        ("f16", ["=f16"], "write PATTERN=TYPE"),
        ("f16", ["output=f17"], "the type f17 is unknown; known: F32, F16"),
        (
            "Q4_K_M",
            ["output=Q4_K_M"],
            "a mixture such as Q4_K_M is no type of one tensor",
        ),
        ("f16", ["output=q6_K"], "choose one of its types, for example type='q8_0'"),
        ("auto", ["output=q6_K"], "type='auto' is unknown"),
    ],
)
def test_overrides_that_mean_nothing(
    wide: Path, tmp_path: Path, kind: str, overrides: list[str], message: str
) -> None:
    pytest.importorskip("llama_cpp")
    with pytest.raises(UsageError, match=message):
        convert(
            ConvertOptions(
                wide, tmp_path / "x.gguf", type=kind, tensor_types=tuple(overrides)
            )
        )
    assert not (tmp_path / "x.gguf").exists()


def test_what_llama_cpp_does_not_do_is_told(tmp_path: Path) -> None:
    """Rows of 160 values are no whole blocks of 256, so llama.cpp takes another type."""
    pytest.importorskip("llama_cpp")
    narrow = make_llama(tmp_path / "narrow", hidden_size=256)
    with pytest.raises(
        UsageError, match=r"llama\.cpp made blk\.0\.ffn_down\.weight Q8_0, not Q6_K"
    ):
        types_of(
            tmp_path / "x.gguf", narrow, type="Q4_K_M", tensor_types=("*ffn_down=q6_K",)
        )
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.part"))


def test_float_gguf_files_change_type_without_llama_cpp(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggext.runtime.llama.lib", None)
    types_of(tmp_path / "f32.gguf", wide)
    for kind in ("f16", "bf16", "q8_0"):
        types_of(tmp_path / f"direct-{kind}.gguf", wide, type=kind)
        types_of(tmp_path / f"twice-{kind}.gguf", tmp_path / "f32.gguf", type=kind)
        direct, twice = (
            read_gguf(tmp_path / f"{name}-{kind}.gguf") for name in ("direct", "twice")
        )
        assert direct.get("general.file_type") == twice.get("general.file_type")
        for name, info in direct.tensors.items():
            assert twice.tensors[name].type == info.type
            assert bytes(twice.tensor_data(name)) == bytes(direct.tensor_data(name))


def test_a_quantized_gguf_files_types_stay(wide: Path, tmp_path: Path) -> None:
    types_of(tmp_path / "q8.gguf", wide, type="q8_0", tensor_types=("output=f16",))
    types = types_of(
        tmp_path / "x.gguf", tmp_path / "q8.gguf", tensor_types=("output=bf16",)
    )
    assert types["output.weight"] == "BF16"
    assert types["token_embd.weight"] == "Q8_0"
    for options in ({"type": "f16"}, {"tensor_types": ("token_embd=f16",)}):
        with pytest.raises(UsageError, match=r"the file is quantized already \(Q8_0\)"):
            types_of(tmp_path / "y.gguf", tmp_path / "q8.gguf", **options)


def test_gates_of_experts_stay_float32(tmp_path: Path) -> None:
    """llama.cpp's own converter and quantizer leave them so too."""
    source = write_random(tmp_path / "moe.gguf", "qwen3moe")
    types = types_of(tmp_path / "x.gguf", source, type="f16")
    assert (
        types["blk.0.ffn_gate_inp.weight"] == types["blk.0.attn_q_norm.weight"] == "F32"
    )
    assert types["blk.0.ffn_gate_exps.weight"] == "F16"


# importance matrices


def importance(wide: Path, tmp_path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """One that favours every fourth column, for each weight of the layers."""
    convert(ConvertOptions(wide, tmp_path / "for-names.gguf"))
    tensors = read_gguf(tmp_path / "for-names.gguf").tensors.values()
    matrix = {}
    for info in tensors:
        if len(info.shape) > 1 and info.name.startswith("blk."):
            matrix[info.name] = np.where(
                np.arange(info.shape[0]) % 4, 0.001, 1000.0
            ).astype("<f4")
    return matrix


def write_gguf_imatrix(
    path: Path, matrix: dict[str, np.ndarray[Any, Any]], counts: float = 4.0
) -> Path:
    fields = {
        "general.type": "imatrix",
        "imatrix.datasets": ["text.txt"],
        "imatrix.chunk_count": 7,
        "imatrix.chunk_size": 512,
    }
    tensors = []
    for name, means in matrix.items():
        for end, values in (
            (".in_sum2", means * np.float32(counts)),
            (".counts", np.full(1, counts, "<f4")),
        ):
            data = values.astype("<f4").tobytes()
            tensors.append(
                TensorToWrite(
                    name + end, values.shape, 0, len(data), lambda data=data: [data]
                )
            )  # type: ignore[misc]
    write_gguf(path, {key: Field.of(value) for key, value in fields.items()}, tensors)
    return path


def write_dat_imatrix(
    path: Path, matrix: dict[str, np.ndarray[Any, Any]], calls: int = 4
) -> Path:
    parts = [struct.pack("<i", len(matrix))]
    for name, means in matrix.items():
        parts += [
            struct.pack("<i", len(name)),
            name.encode(),
            struct.pack("<ii", calls, means.size),
        ]
        parts.append((means * np.float32(calls)).astype("<f4").tobytes())
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 7, 8), b"text.txt"]))
    return path


@pytest.mark.parametrize("write", [write_gguf_imatrix, write_dat_imatrix])
def test_the_columns_that_matter_are_kept_better(
    wide: Path, tmp_path: Path, write: Any
) -> None:
    pytest.importorskip("llama_cpp")
    matrix = importance(wide, tmp_path)
    path = write(tmp_path / "imatrix.file", matrix)
    read = read_imatrix(path)
    assert all(
        np.array_equal(read.entries[name], means) for name, means in matrix.items()
    )
    files = {}
    for out, imatrix in (("plain", None), ("weighted", path)):
        convert(
            ConvertOptions(
                wide, tmp_path / f"{out}.gguf", type="Q4_K_M", imatrix=imatrix
            )
        )
        files[out] = read_gguf(tmp_path / f"{out}.gguf")
    name = "blk.0.attn_k.weight"
    exact = values_of(read_gguf(tmp_path / "for-names.gguf"), name)
    error = {
        out: np.abs(values_of(gguf, name) - exact)[:, ::4].mean()
        for out, gguf in files.items()
    }
    assert error["weighted"] < 0.9 * error["plain"]
    assert files["weighted"].get("quantize.imatrix.file") == "imatrix.file"
    assert files["weighted"].get("quantize.imatrix.dataset") == "text.txt"
    assert files["weighted"].get("quantize.imatrix.entries_count") == len(matrix)
    assert files["weighted"].get("quantize.imatrix.chunks_count") == 7


def test_types_that_need_a_matrix(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    options = ConvertOptions(wide, tmp_path / "x.gguf", type="IQ2_XXS")
    with pytest.raises(GgextError, match="requires an importance matrix"):
        convert(options)
    path = write_gguf_imatrix(tmp_path / "imatrix.gguf", importance(wide, tmp_path))
    types = types_of(tmp_path / "x.gguf", wide, type="IQ2_XXS", imatrix=path)
    assert "IQ2_XXS" in types.values()


def test_experts_that_were_never_called_weigh_one(tmp_path: Path) -> None:
    sums, counts = np.array([2, 4, 0, 0], "<f4"), np.array([2, 0], "<f4")
    tensors = [
        TensorToWrite("e.in_sum2", (2, 2), 0, 16, lambda: [sums.tobytes()]),
        TensorToWrite("e.counts", (1, 2), 0, 8, lambda: [counts.tobytes()]),
    ]
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert read_imatrix(tmp_path / "m.gguf").entries["e"].tolist() == [1, 2, 1, 1]


def test_matrices_that_do_not_fit(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    matrix = importance(wide, tmp_path)
    of_another = write_dat_imatrix(
        tmp_path / "other.dat", {"blk.0.other.weight": np.ones(4, "<f4")}
    )
    wrong_size = write_dat_imatrix(
        tmp_path / "size.dat", {name: means[:32] for name, means in matrix.items()}
    )
    good = write_dat_imatrix(tmp_path / "good.dat", matrix)
    for kind, path, message in (
        ("Q4_K_M", of_another, "knows no tensor of this model"),
        ("Q4_K_M", wrong_size, "imatrix size 32 is different from tensor size"),
        ("q8_0", good, "is for llama.cpp's quantizer"),
    ):
        with pytest.raises(GgextError, match=message):
            convert(ConvertOptions(wide, tmp_path / "x.gguf", type=kind, imatrix=path))
    assert not (tmp_path / "x.gguf").exists()


def test_hostile_matrices(tmp_path: Path) -> None:
    good = write_dat_imatrix(
        tmp_path / "good.dat", {"a": np.ones(4, "<f4")}
    ).read_bytes()
    whole = 4 + 4 + 1 + 8 + 16
    bad = {
        "empty": b"",
        "no entries": struct.pack("<i", 0),
        "negative": struct.pack("<i", -1),
        "a huge name": struct.pack("<ii", 1, 1 << 30),
        "a negative name": struct.pack("<ii", 1, -5),
        "huge values": struct.pack("<ii1sii", 1, 1, b"a", 1, 0x7FFFFFFF),
        "not finite": good.replace(
            struct.pack("<f", 4.0), struct.pack("<f", float("nan"))
        ),
        "another gguf": (write_random(tmp_path / "model.gguf", "llama")).read_bytes(),
    } | {f"cut at {n}": good[:n] for n in range(whole)}
    for name, data in bad.items():
        (tmp_path / "bad.dat").write_bytes(data)
        with pytest.raises(GgufError):
            pytest.fail(f"{name} was read: {read_imatrix(tmp_path / 'bad.dat')}")
    (tmp_path / "bad.dat").write_bytes(
        good[:whole]
    )  # the end with chunks and text is optional
    assert read_imatrix(tmp_path / "bad.dat").chunks == 0
    with pytest.raises(GgufError, match="No such file"):
        read_imatrix(tmp_path / "none")
