"""What `ggext verify` proves without a reference: levels, verdicts, reasons."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rewriting import as_written, rewritten
from verified import GAIN, METHODS, ggext

from ggext.convert import ConvertOptions, convert
from ggext.errors import ModelError
from ggext.gguf.open import read_gguf
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.proof.report import Check, Report
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")


def of_level(report: Report, level: str) -> list[Check]:
    return [check for check in report.checks if check.level == level]


# graph


@pytest.mark.parametrize("method", METHODS)
def test_a_right_file_is_executed_as_asked(files: dict[str, Path], method: str) -> None:
    report = verify(files[method], levels=["graph"])
    assert report.passed, report.checks
    assert len(of_level(report, "graph")) == 3
    assert [row.node for row in report.nodes[:2]] == ["Qcur-0", "Kcur-0"]
    assert all(
        row.executed == pytest.approx(row.wanted, rel=1e-5) for row in report.pairs
    )


def test_quantized_weights_make_no_difference(
    files: dict[str, Path], tmp_path: Path
) -> None:
    convert(ConvertOptions(files["yarn"], tmp_path / "q8.gguf", type="q8_0"))
    full, quantized = (
        verify(f, levels=["graph"]) for f in (files["yarn"], tmp_path / "q8.gguf")
    )
    assert quantized.passed
    assert of_level(quantized, "graph")[0].value == pytest.approx(
        of_level(full, "graph")[0].value, rel=0.2
    )


def test_upstreams_file_fails_and_says_which_dimension_how_much_and_why(
    upstream: Path,
) -> None:
    result = ggext("verify", upstream, "--details")
    assert result.exit_code == 1
    assert (
        "pair 7 of 16 (dimensions 14 and 15, wavelength 516.1 tokens)" in result.stdout
    )
    assert (
        "0.01217 rad a token wanted, 0.02029 executed (×1.667); 8 of 16 pairs are off"
        in result.stdout
    )
    assert "wanted 1, executed 1.138629, in 6 of 6 nodes" in result.stdout
    assert "beta_fast 16 and beta_slow 2 wanted, 32 and 1 executed" in result.stdout
    unread = (
        "the file's rope.scaling.yarn_attn_factor 1 is not read by llama.cpp's llama"
    )
    assert f"{unread}; rope.scaling.attn_factor must be 0.878249" in result.stdout
    wrong = "1,024 tokens: WRONG, the file does not say what was asked for"
    assert wrong in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("method", "key", "value", "why"),
    [
        (
            "yarn",
            "scaling.attn_factor",
            GAIN,
            "multiplies the gain by 1.13863 on its own, so rope.scaling.attn_factor",
        ),
        ("yarn", "scaling.factor", 8.0, "factor 4 wanted, 8 executed"),
        (
            "yarn",
            "scaling.type",
            "linear",
            "the operation runs without it: rope.scaling.type must be yarn",
        ),
        (
            "yarn",
            "scaling.original_context_length",
            512,
            "original context 256 wanted, 512 executed",
        ),
        (
            "linear",
            "scaling.type",
            "yarn",
            "linear is wanted, and the operation runs YaRN",
        ),
        ("linear", "freq_base", 500000.0, "base 1000 wanted, 500000 executed"),
        (
            "linear-gain",
            "scaling.attn_factor",
            1.0,
            "attn_factor is 1; rope.scaling.attn_factor must be 1.2",
        ),
        ("ntk", "freq_base", 10000.0, "10000 executed (rope.freq_base)"),
    ],
)
def test_a_wrong_key_is_named(
    files: dict[str, Path],
    tmp_path: Path,
    method: str,
    key: str,
    value: object,
    why: str,
) -> None:
    wrong = rewritten(
        files[method], tmp_path / "wrong.gguf", {f"llama.rope.{key}": value}
    )
    report = verify(wrong, levels=["graph"])
    assert not report.passed
    assert why in " ".join(check.why for check in report.checks)


def test_llama3_without_its_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    wrong = rewritten(
        files["llama3"], tmp_path / "wrong.gguf", {}, drop=["rope_freqs.weight"]
    )
    report = verify(wrong, levels=["graph"])
    assert not report.passed
    assert "needs the tensor rope_freqs.weight" in " ".join(
        check.why for check in report.checks
    )


def test_a_slow_pair_is_seen_at_the_end_of_the_context(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """One factor off by 1e-4 turns the slowest pair by 1e-5 rad in 1024 tokens."""
    import numpy as np

    gguf = read_gguf(files["llama3"])
    factors = gguf.float_tensor("rope_freqs.weight").copy()
    factors[-1] *= 1.0001
    data = factors.tobytes()
    tensors = [
        as_written(gguf, name) for name in gguf.tensors if name != "rope_freqs.weight"
    ]
    tensors.append(
        TensorToWrite(
            "rope_freqs.weight", (len(factors),), 0, len(data), lambda: [data]
        )
    )
    write_gguf(tmp_path / "wrong.gguf", gguf.fields, tensors)
    report = verify(tmp_path / "wrong.gguf", levels=["graph"])
    assert not report.passed
    frequency = of_level(report, "graph")[1]
    assert frequency.value == pytest.approx(1e-4, rel=0.1)
    assert "pair 15 of 16" in frequency.detail
    assert np.isfinite(frequency.tolerance)


def with_first_query(source: Path, out: Path, value: float, count: int) -> Path:
    """The file with ``count`` query weights of the first layer replaced."""
    import numpy as np

    gguf, name = read_gguf(source), "blk.0.attn_q.weight"
    weights = gguf.float_tensor(name).copy()
    weights[:count] = value
    data = weights.tobytes()
    changed = TensorToWrite(
        name, gguf.tensors[name].shape, 0, len(data), lambda: [data]
    )
    tensors = [
        changed if other == name else as_written(gguf, other) for other in gguf.tensors
    ]
    assert gguf.tensors[name].type == 0
    assert np.prod(changed.shape) >= count
    write_gguf(out, gguf.fields, tensors)
    return out


def test_a_layer_of_zeros_says_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    zeros = with_first_query(files["yarn"], tmp_path / "zeros.gguf", 0.0, 128 * 128)
    report = verify(zeros, levels=["graph"])
    assert report.passed, report.checks


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_fail(
    files: dict[str, Path], tmp_path: Path, value: float
) -> None:
    broken = with_first_query(files["yarn"], tmp_path / "broken.gguf", value, 1)
    report = verify(broken, levels=["graph"])
    assert not report.passed
    assert of_level(report, "graph")[0].value == math.inf


def test_a_vocabulary_that_makes_no_tokens_is_named() -> None:
    """A division by zero, of a damaged file."""
    from ggext.proof.reference import sample_tokens

    mute: Any = SimpleNamespace(path="mute.gguf", tokenize=lambda _: [])
    with pytest.raises(ModelError, match=r"mute\.gguf: its vocabulary makes no tokens"):
        sample_tokens(mute, 5)


def test_far_positions_need_no_long_prefill(tmp_path: Path) -> None:
    """The last tokens of a million are decoded in a context of a few cells."""
    out = tmp_path / "far.gguf"
    convert(ConvertOptions(Path("demo"), out, RopeScaling("linear", factor=4096)))
    report = verify(out, levels=["graph"])
    assert report.passed
    assert " of 1,048,576," in of_level(report, "graph")[0].detail
