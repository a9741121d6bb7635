"""The rotations of the running graph, found and measured."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rewriting import as_written
from verified import GAIN

from ggext.errors import ModelError
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.proof.report import Check, Expected
from ggext.rope.scaling import RopeGeometry, RopeScaling
from ggext.verify import verify

pytest.importorskip("llama_cpp")


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


def rope_nodes(layout: str, n_rot: int, head_dim: int) -> tuple[Expected, Any]:
    """A node as the CPU computes it, for shapes that the embedded model has not."""
    import numpy as np

    from ggext.proof.kernels import as_factors
    from ggext.runtime.ggml_devices import devices, rope_on
    from ggext.runtime.rope_watcher import RopeNode

    geometry = RopeGeometry(n_rot, head_dim, 10000.0, layout, 256)  # type: ignore[arg-type]
    wanted = Expected(RopeScaling("yarn", factor=4), geometry, "a test")
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

    def checks(held_to: Expected) -> list[Check]:
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
    wanted = Expected(
        RopeScaling("yarn", factor=4),
        RopeGeometry(32, 32, 10000.0, "norm", 256),
        "a test",
        GAIN**2,
    )
    assert wanted.table.attention_factor == pytest.approx(GAIN)
    assert wanted.kernel_table.attention_factor == pytest.approx(1.0)


# kernel


def test_every_device_is_measured_to_a_million_tokens(files: dict[str, Path]) -> None:
    from ggext.runtime.ggml_devices import devices

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
    from ggext.runtime import ggml_devices

    real = ggml_devices.rope_on

    def broken(
        device: Any, call: Any, rows: Any, positions: Any, first: int = 0
    ) -> Any:
        turned = real(device, call, rows, positions)
        assert turned is not None
        turned[positions >= first] *= -1.0
        return turned

    monkeypatch.setattr(ggml_devices, "rope_on", partial(broken, first=1024))
    assert verify(files["yarn"], levels=["kernel"]).passed
    monkeypatch.setattr(ggml_devices, "rope_on", partial(broken, first=512))
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
    with ggml.graph_context(functions) as context:
        address = ggml.rope_nodes(functions, context, call, (4, 2, 8))[0]
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

    from ggext.runtime import ggml, ggml_devices

    call = replace(ggml.RopeCall(8, 0, 64, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0), **change)
    with pytest.raises(ModelError):
        ggml_devices.rope_on(
            ggml_devices.devices()[0],
            call,
            np.zeros((2, 1, 8), np.float32),
            np.arange(2),
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
