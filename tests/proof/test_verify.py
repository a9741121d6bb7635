"""What ``ggext verify`` proves without a reference: levels, verdicts, reasons, pictures."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hostile.mutations import draft_of, write
from paths import ROOT
from rewriting import as_written, rewritten
from tiny_gguf import base_of

from ggext.cli import main
from ggext.convert import ConvertOptions, convert
from ggext.errors import MissingExtraError, ModelError, UsageError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.proof.report import Check, Report, Wanted
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.verify import LEVELS, verify

pytest.importorskip("llama_cpp")

GAIN = 1 + 0.1 * math.log(4)
OWN_YARN = RopeScaling(
    "yarn", factor=4, beta_fast=16, beta_slow=2, attention_factor=1.0
)
METHODS = {
    "none": RopeScaling("none"),
    "linear": RopeScaling("linear", factor=4),
    "linear-gain": RopeScaling("linear", factor=4, attention_factor=1.2),
    "ntk": RopeScaling("ntk", factor=4),
    "yarn": RopeScaling("yarn", factor=4),
    "yarn-7.5": RopeScaling("yarn", factor=7.5),
    "yarn-gain-1": RopeScaling("yarn", factor=4, attention_factor=1.0),
    "yarn-betas": OWN_YARN,
    "llama3": RopeScaling("llama3", factor=8),
}


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def of_level(report: Report, level: str) -> list[Check]:
    return [check for check in report.checks if check.level == level]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model (trained context 256) with each method baked."""
    folder = tmp_path_factory.mktemp("baked")
    found = {name: folder / f"{name}.gguf" for name in METHODS}
    for name, rope in METHODS.items():
        # a gain stays in the keys here, where verify has to see it
        encoding = "keys" if name in ("yarn", "yarn-7.5", "linear-gain") else None
        convert(ConvertOptions(Path("demo"), found[name], rope, encoding=encoding))
    return found


@pytest.fixture(scope="module")
def upstream(files: dict[str, Path]) -> Path:
    """What llama.cpp's own converter makes of the request in ``yarn-betas``: keys that no one
    reads."""
    scaling = "llama.rope.scaling."
    keys = {
        "type": "yarn",
        "factor": 4.0,
        "yarn_attn_factor": 1.0,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
    }
    changes = {scaling + key: value for key, value in keys.items()}
    out = files["yarn-betas"].with_name("upstream.gguf")
    return rewritten(
        files["yarn-betas"],
        out,
        changes,
        drop=("rope_freqs.weight", f"{scaling}attn_factor"),
    )


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


def test_neox_in_a_live_graph(files: dict[str, Path], tmp_path: Path) -> None:
    """The embedded weights as a qwen2, which pairs dimensions half a head apart and has biases."""
    import struct
    from dataclasses import replace

    from ggext.rope.encode import encode
    from ggext.rope.recipe import COMMAND_LINE, Recipe

    gguf = read_gguf(files["none"])
    rope = RopeScaling("yarn", factor=4, original_context=256)
    geometry = RopeGeometry(32, 32, 10000.0, "neox", 256)
    encoding = encode(rope, geometry, "qwen2")
    recipe = json.dumps(Recipe(rope, geometry, encoding.name, COMMAND_LINE).as_dict())
    fields = {
        k.replace("llama.", "qwen2.", 1) if k.startswith("llama.") else k: f
        for k, f in gguf.fields.items()
    }
    fields |= {f"qwen2.{k}": Field.of(v) for k, v in encoding.keys.items()}
    fields |= {
        "general.architecture": Field.of("qwen2"),
        "ggext.recipe": Field.of(recipe),
    }
    tensors = [as_written(gguf, name) for name in gguf.tensors]
    for t in gguf.tensors.values():
        if t.name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            n = t.shape[1]
            bias = struct.pack(f"<{n}f", *[0.1] * n)
            name = t.name.replace("weight", "bias")
            tensors.append(
                TensorToWrite(
                    name, (n,), 0, len(bias), partial(lambda data: [data], bias)
                )
            )
    write_gguf(tmp_path / "qwen2.gguf", fields, tensors)
    report = verify(tmp_path / "qwen2.gguf")
    assert report.passed, report.checks
    assert report.nodes[0].parameters["mode"] == 2
    other = replace(geometry, layout="norm")
    fields["ggext.recipe"] = Field.of(
        json.dumps(Recipe(rope, other, encoding.name, COMMAND_LINE).as_dict())
    )
    write_gguf(tmp_path / "wrong.gguf", fields, tensors)
    wrong = verify(tmp_path / "wrong.gguf")
    assert not wrong.passed
    assert "llama.cpp's qwen2 pairs dimensions as neox; norm is wanted" in " ".join(
        c.why for c in wrong.checks
    )


def rope_nodes(layout: str, n_rot: int, head_dim: int) -> tuple[Wanted, Any]:
    """A node as the CPU computes it, for shapes that the embedded model has not."""
    import numpy as np

    from ggext.proof.kernels import as_factors
    from ggext.runtime.ggml import RopeNode, devices, rope_on

    geometry = RopeGeometry(n_rot, head_dim, 10000.0, layout, 256)  # type: ignore[arg-type]
    wanted = Wanted(RopeScaling("yarn", factor=4), geometry, "a test")
    rows = np.random.default_rng(1).normal(size=(64, 3, head_dim)).astype(np.float32)
    call, positions = as_factors(wanted.table, geometry), np.arange(64)
    turned = rope_on(devices()[0], call, rows, positions)
    assert turned is not None
    return wanted, RopeNode("Qcur-0", "Qcur-0", call, positions, rows, turned)


@pytest.mark.parametrize("layout", ["norm", "neox"])
@pytest.mark.parametrize("n_rot", [32, 24])
def test_layouts_and_partial_rotation(layout: str, n_rot: int) -> None:
    from dataclasses import replace

    from ggext.proof.graph import _turn, check_graph, executed_by_node

    wanted, node = rope_nodes(layout, n_rot, 32)

    def checks(held_to: Wanted) -> list[Check]:
        found = [_turn(node, held_to)]
        return check_graph(
            GgufFile(
                Path("x"), 3, {"general.architecture": Field.of("llama")}, {}, 32, 0, 0
            ),
            found,
            executed_by_node(found),
            gpu=False,
        )

    assert all(check.passed for check in checks(wanted))
    other = replace(wanted.geometry, layout="norm" if layout == "neox" else "neox")
    assert "pairs dimensions as" in checks(replace(wanted, geometry=other))[1].why
    narrow = replace(
        wanted.geometry, n_rot=n_rot - 8
    )  # dimensions turn that should stay
    assert checks(replace(wanted, geometry=narrow))[0].value == math.inf


def test_a_folded_gain_is_not_the_kernels() -> None:
    wanted = Wanted(
        RopeScaling("yarn", factor=4),
        RopeGeometry(32, 32, 10000.0, "norm", 256),
        "a test",
        GAIN**2,
    )
    assert wanted.table.attention_factor == pytest.approx(GAIN)
    assert wanted.kernel_table.attention_factor == pytest.approx(1.0)


# kernel


def test_every_device_is_measured_to_a_million_tokens(files: dict[str, Path]) -> None:
    from ggext.runtime.ggml import devices

    report = verify(files["yarn"])
    names = {row.kernel for row in report.kernels}
    assert names == {"ggext"} | {f"llama.cpp {device.name}" for device in devices()}
    for name in names:
        rows = {row.position: row for row in report.kernels if row.kernel == name}
        assert {0, 1, 1023, 4096, 32768, 131072, 1048576} <= set(rows)
        assert [rows[p].inside for p in (1023, 4096)] == [True, False]
    worst = {n: max(r.error for r in report.kernels if r.kernel == n) for n in names}
    assert worst["ggext"] < 1e-6 < 1e-2 < worst["llama.cpp CPU"] < 0.5


def test_positions_beyond_the_context_do_not_decide(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    from ggext.runtime import ggml

    real = ggml.rope_on

    def broken(
        device: Any, call: Any, rows: Any, positions: Any, first: int = 0
    ) -> Any:
        turned = real(device, call, rows, positions)
        assert turned is not None
        turned[positions >= first] *= -1.0
        return turned

    monkeypatch.setattr(ggml, "rope_on", partial(broken, first=1024))
    assert verify(files["yarn"], levels=["kernel"]).passed
    monkeypatch.setattr(ggml, "rope_on", partial(broken, first=512))
    report = verify(files["yarn"], levels=["kernel"])
    assert not report.passed
    assert "less exactly than float32 explains" in next(
        check.why for check in report.checks if check.why
    )


def test_a_million_tokens_are_told_in_words() -> None:
    """128 dimensions, base 10000: the figure of every large Llama."""
    from dataclasses import replace

    from ggext.proof.kernels import check_devices
    from ggext.rope.methods import make_table

    geometry = RopeGeometry(128, 128, 10000.0, "neox", 4096)
    table = replace(make_table(RopeScaling("none"), geometry), context=1 << 21)
    checks, rows = check_devices(table, geometry, None)
    last = next(row for row in rows if row.position == 1 << 20)
    assert 0.03 < last.error < last.bound
    assert last.meaning.startswith("float32 angles: cos and sin of pair")
    assert last.meaning.endswith(
        "of a token's step: it hardly tells neighbouring tokens apart"
    )
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("base", [1e4, 5e5, 1e7])
@pytest.mark.parametrize("n_rot", [16, 64, 256])
def test_the_bound_of_float32_holds(base: float, n_rot: int) -> None:
    """Measured over 1440 tables the CPU never used more than 0.34 of it; a bound that is too wide
    hides errors."""
    from dataclasses import replace

    from ggext.proof.kernels import check_devices
    from ggext.rope.methods import make_table

    geometry = RopeGeometry(n_rot, n_rot, base, "norm", 8192)
    for method in ("linear", "ntk", "yarn", "llama3"):
        table = replace(
            make_table(RopeScaling(method, factor=8), geometry), context=1 << 21
        )  # type: ignore[arg-type]
        used = max(
            row.error / row.bound for row in check_devices(table, geometry, None)[1]
        )
        assert 0.02 < used < 0.5


# shift


def test_a_gain_in_the_keys_is_applied_again_by_every_shift(
    files: dict[str, Path],
) -> None:
    report = verify(files["yarn"], levels=["shift"])
    assert [row.k_norm for row in report.shifts] == pytest.approx(
        [GAIN, GAIN**2, GAIN**3], rel=1e-5
    )
    assert [round(row.k_norm, 4) for row in report.shifts] == [1.1386, 1.2965, 1.4762]
    assert 1e-5 < report.shifts[0].kl < report.shifts[2].kl
    assert report.shift_safe is False
    assert report.passed  # right, as long as no one rolls it


@pytest.mark.parametrize(
    "method", ["none", "linear", "ntk", "llama3", "yarn-gain-1", "yarn-betas"]
)
def test_without_a_gain_the_cache_may_roll(files: dict[str, Path], method: str) -> None:
    report = verify(files[method], levels=["shift"], require_shift_safe=True)
    assert report.passed
    assert report.shift_safe is True
    assert max(row.kl for row in report.shifts) < 1e-9
    assert all(row.k_norm == pytest.approx(1, abs=1e-6) for row in report.shifts)


def test_require_shift_safe(files: dict[str, Path]) -> None:
    told, required = (
        ggext("verify", files["yarn"], "--details", "--level", "shift", *o)
        for o in ([], ["--require-shift-safe"])
    )
    assert (told.exit_code, required.exit_code) == (0, 1)
    assert "UNSAFE  not safe to roll: ×1.1386, ×1.2965, ×1.4762" in told.stdout
    assert (
        "each shift multiplies the cached keys by the attention factor 1.139"
        in told.stdout
    )
    assert "or write the file with --encoding folded" in told.stdout
    assert told.stdout.endswith("do not let it roll\n")
    assert "WRONG" in required.stdout


def test_a_cache_that_cannot_shift(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    from ggext.runtime.probe import Probe

    monkeypatch.setattr(Probe, "can_shift", False)
    report = verify(files["none"])
    assert report.passed
    assert (
        "shift: not measured; llama.cpp cannot shift the cache of this llama model"
        in report.notes
    )
    assert report.shift_safe is None
    with pytest.raises(ModelError, match="cannot shift the cache"):
        verify(files["none"], require_shift_safe=True)


def test_a_model_of_which_all_layers_slide(tmp_path: Path) -> None:
    """It has a second cache without layers, which llama.cpp cannot shift: it ends the process."""
    fields, tensors = base_of("gemma3")
    draft = draft_of("gemma3", fields, tensors)
    layers = draft.fields["gemma3.block_count"].value
    key = "gemma3.attention.sliding_window_pattern"
    draft.fields[key] = Field.of([True] * layers)
    write(tmp_path / "case.gguf", draft)
    report = verify(tmp_path / "case.gguf")
    assert (
        "shift: not measured; llama.cpp cannot shift the cache of this gemma3 model"
        in report.notes
    )


def test_logits_that_are_no_numbers_are_not_right(tmp_path: Path) -> None:
    fields, tensors = base_of("command-r")
    draft = draft_of("command-r", fields, tensors)
    draft.fields["command-r.logit_scale"] = Field(ValueType.FLOAT32, -math.inf)
    write(tmp_path / "case.gguf", draft)
    report = verify(tmp_path / "case.gguf")
    assert any("logits are no finite numbers" in note for note in report.notes)
    assert report.shift_safe is None


# ggml through ctypes


def test_another_layout_of_a_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggext.runtime import ggml

    functions = ggml.library()
    assert ggml.self_test(functions) == ""
    for problem, name, value in (
        ("a tensor has", "_OBJECT", 40),
        ("a ROPE node reads as", "Tensor", swapped("ne", "nb")),
        (
            "the parameters of a ROPE node stand elsewhere",
            "Tensor",
            swapped("op_params", "op_params", first=1),
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ggml, name, value)
            assert ggml.self_test(functions).startswith(problem)
            with pytest.raises(
                ModelError,
                match=r"llama-cpp-python 0\.3\.36 is not the one that ggext knows",
            ):
                ggml._library.__wrapped__()


def swapped(a: str, b: str, first: int = 0) -> type:
    """``Tensor`` with two fields in each other's place, or with one that begins later."""
    import ctypes

    from ggext.runtime.ggml import Tensor

    fields = dict(Tensor._fields_)
    order = [{a: b, b: a}.get(name, name) for name in fields]
    parts = [(name, fields[name]) for name in order]
    if first:
        index = order.index(a)
        parts[index : index + 1] = [
            ("gap", ctypes.c_int32 * first),
            (a, ctypes.c_int32 * 16),
        ]
        parts = [part for part in parts if part[0] != "flags"]
    return type("Tensor", (ctypes.Structure,), {"_fields_": tuple(parts)})


def test_a_tensor_whose_sizes_contradict_each_other_is_not_read() -> None:
    from ggext.runtime import ggml

    functions = ggml.library()
    call = ggml.RopeCall(8, 0, 64, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
    with ggml._context(functions) as context:
        address = ggml._rope_nodes(functions, context, call, (4, 2, 8))[0]
        with pytest.raises(ModelError, match="cannot be read"):  # no data yet
            ggml.read_tensor(functions, address)
        ggml.Tensor.from_address(address).nb[1] = 1 << 40
        with pytest.raises(ModelError, match="cannot be read"):
            ggml.read_tensor(functions, address)


@pytest.mark.parametrize(
    "change", [{"n_dims": 7}, {"n_dims": 64}, {"mode": 8}, {"factors": (1.0,)}]
)
def test_what_ggml_would_abort_on_is_refused(change: dict[str, Any]) -> None:
    from dataclasses import replace

    import numpy as np

    from ggext.runtime import ggml

    call = replace(ggml.RopeCall(8, 0, 64, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0), **change)
    with pytest.raises(ModelError):
        ggml.rope_on(
            ggml.devices()[0], call, np.zeros((2, 1, 8), np.float32), np.arange(2)
        )


def test_an_error_while_the_graph_is_read_reaches_the_caller(
    files: dict[str, Path],
) -> None:
    from ggext.runtime.model import Model
    from ggext.runtime.probe import Probe

    def fail(_: object) -> None:
        raise ModelError("the sink")

    with Model.open(files["none"]) as model, Probe(model, 256, fail) as probe:
        with pytest.raises(ModelError, match="the sink"):
            probe.decode([5, 6, 7], 0)
        with pytest.raises(ModelError, match="cannot be evaluated"):
            probe.decode([5], 100)  # a gap in the positions


# the report


def test_one_report_on_the_screen(files: dict[str, Path]) -> None:
    result = ggext("verify", files["linear"], "--details")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    levels = [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in LEVELS
    ]
    assert levels == ["table"] * 3 + ["kernel"] * 2 + ["graph"] * 3 + ["shift"]
    assert "worst |Δ| of cos and sin / gain, by kernel" in lines
    assert any(
        line.startswith("1,048,576 ") and "beyond the context" in line for line in lines
    )
    assert lines[-1] == "1,024 tokens: exact in llama.cpp; safe to roll"


@pytest.mark.parametrize("name", ["linear", "yarn", "yarn-betas", "upstream"])
def test_a_line_a_level_of_80_columns(
    files: dict[str, Path], upstream: Path, name: str
) -> None:
    """newcomer.md, E: every row wrapped in the middle of a word; and no verdict."""
    path = upstream if name == "upstream" else files[name]
    result = ggext("verify", path)
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80
    levels = [
        line.split()[0]
        for line in lines
        if line.split()[:1] and line.split()[0] in LEVELS
    ]
    assert set(levels) == set(LEVELS)
    assert result.exit_code == (1 if name == "upstream" else 0)
    verdicts = {
        "linear": "1,024 tokens: exact in llama.cpp; safe to roll",
        "yarn": "1,024 tokens: exact in llama.cpp; do not let it roll",
        "yarn-betas": "1,024 tokens: exact in llama.cpp; safe to roll",
    }
    if name != "upstream":
        assert lines[-1] == verdicts[name]
    assert json.loads(ggext("verify", path, "--json").stdout)["verdict"].split(":")[
        0
    ] == ("1,024 tokens")


def test_what_the_words_mean() -> None:
    result = ggext("verify", "--explain")
    assert result.exit_code == 0
    assert "**safe to roll, shift-safe**" in result.stdout
    page = ROOT / "docs" / "glossary.md"
    assert page.read_text() == result.stdout


# files from elsewhere


def foreign(files: dict[str, Path], name: str, out: Path, **changes: Any) -> Path:
    """The file without a recipe, as another program would have written it."""
    changes = {
        f"llama.{key.replace('__', '.')}": value for key, value in changes.items()
    }
    return rewritten(files[name], out, changes, drop=("ggext.recipe",))


@pytest.mark.parametrize(
    "name", ["none", "linear", "ntk", "yarn", "yarn-betas", "llama3"]
)
def test_a_file_from_elsewhere_is_held_to_its_own_keys(
    files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    report = verify(foreign(files, name, tmp_path / "x.gguf"))
    assert report.wanted_from == "its own keys"
    assert report.passed, report.checks
    assert report.verdict.startswith(f"{report.context:,} tokens: exact in llama.cpp; ")
    assert report.shift_safe is (name != "yarn")


def test_keys_that_llama_cpp_does_not_read_are_found(
    upstream: Path, tmp_path: Path
) -> None:
    """ "Is this YaRN file from the hub what llama.cpp executes?", without a recipe."""
    path = rewritten(upstream, tmp_path / "x.gguf", {}, drop=("ggext.recipe",))
    result = ggext("verify", path)
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "beta_fast 16 and beta_slow 2 wanted, 32 and 1 executed" in said
    assert "yarn_attn_factor 1 is not read by llama.cpp's llama" in said
    assert said.endswith("WRONG, the file does not say what its keys mean")


def test_a_known_model_is_held_to_what_its_authors_publish(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """A Llama 3.1 that lost its frequency factors says nothing wrong of itself."""
    published = {"rope__freq_base": 500000.0, "context_length": 131072}
    as_published = RopeScaling(
        "llama3",
        factor=8.0,
        original_context=8192,
        context=131072,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    model = foreign(
        files, "none", tmp_path / "base.gguf", **published, embedding_length=4096
    )
    report = verify(model, levels=["table"])
    assert not report.passed
    why = " ".join(check.why for check in report.checks)
    assert "Llama 3.1 and 3.3 is scaled by llama3 ×8 of 8,192 tokens" in why
    right = tmp_path / "right.gguf"
    convert(ConvertOptions(model, right, as_published))
    bare = rewritten(
        right, tmp_path / "bare.gguf", {}, drop=("ggext.recipe", "ggext.before")
    )
    report = verify(bare, levels=["table"])
    assert report.passed
    assert report.published.startswith("as the authors of Llama 3.1 and 3.3 publish it")
    other = tmp_path / "other.gguf"
    convert(
        ConvertOptions(
            model, other, RopeScaling("yarn", factor=4, original_context=32768)
        )
    )
    bare = rewritten(
        other, tmp_path / "bare2.gguf", {}, drop=("ggext.recipe", "ggext.before")
    )
    report = verify(bare, levels=["table"])
    assert report.passed
    assert "this file has a scaling of its own" in report.published


def test_json_has_every_figure(files: dict[str, Path]) -> None:
    report = json.loads(ggext("verify", files["yarn"], "--json").stdout)
    assert report["shift_safe"] is False
    assert len(report["pairs"]) == 16
    assert len(report["shifts"]) == 3
    assert report["nodes"][0]["parameters"]["freq_scale"] == 0.25
    assert {"kernel", "position", "error", "bound", "pair", "inside", "meaning"} == set(
        report["kernels"][0]
    )


@pytest.mark.parametrize("name", ["proof.png", "proof.svg"])
def test_plot(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    assert ggext("verify", files["yarn"], "--plot", tmp_path / name).exit_code == 0
    start = (tmp_path / name).read_bytes()[:100]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start


def test_a_plot_of_the_table_alone(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (
        ggext(
            "verify", files["yarn"], "--level", "table", "--plot", tmp_path / "p.png"
        ).exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "graf"], "unknown level graf: choose of table, kernel"),
        (["--level", "logits"], "needs --reference CHECKPOINT"),
        (["--plot", "proof.doc"], "must be one of .png"),
    ],
)
def test_usage(files: dict[str, Path], arguments: list[str], message: str) -> None:
    result = ggext("verify", files["none"], *arguments)
    assert result.exit_code == UsageError.exit_code
    assert message in result.stderr


# without extras


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("ggext.runtime.llama._module", None)


@pytest.mark.usefixtures("without_llama_cpp")
def test_without_llama_cpp_the_rest_is_proved(files: dict[str, Path]) -> None:
    report = verify(files["yarn"])
    assert report.passed
    assert {check.level for check in report.checks} == {"table", "kernel"}
    assert {row.kernel for row in report.kernels} == {"ggext"}
    assert "what llama.cpp executes: not measured; " in report.notes[-1]
    assert 'pip install "ggext[run]"' in report.notes[-1]


@pytest.mark.usefixtures("without_llama_cpp")
@pytest.mark.parametrize(
    "options", [["--level", "table,graph"], ["--require-shift-safe"]]
)
def test_a_level_that_was_asked_for_needs_its_extra(
    files: dict[str, Path], options: list[str]
) -> None:
    result = ggext("verify", files["yarn"], *options)
    assert result.exit_code == MissingExtraError.exit_code
    assert 'pip install "ggext[run]"' in result.stderr.splitlines()[-1]


def test_a_plot_needs_its_extra(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = ggext("verify", files["yarn"], "--plot", tmp_path / "p.png")
    assert result.exit_code == MissingExtraError.exit_code
    assert 'pip install "ggext[plot]"' in result.stderr.splitlines()[-1]
    assert not (tmp_path / "p.png").exists()
