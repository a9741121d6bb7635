"""Layers that rotate otherwise than the file says: verify sees each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layered import bake

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.verify import Report, verify

# files

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")


def copied(source: Path, out: Path, *, without: str = "", **changes: Any) -> Path:
    """The same tensors with other keys of the architecture."""
    gguf = read_gguf(source)
    kept = {key: field for key, field in gguf.fields.items() if key != without}
    fields = kept | {
        f"{gguf.arch}.{key.replace('__', '.')}": Field.of(value)
        for key, value in changes.items()
    }
    tensors = [
        TensorToWrite(
            t.name, t.shape, t.type, t.nbytes, lambda t=t: [gguf.tensor_data(t.name)]
        )  # type: ignore[misc]
        for t in gguf.tensors.values()
    ]
    write_gguf(out, fields, tensors)
    return out


def failed(report: Report) -> set[str]:
    return {check.quantity for check in report.checks if not check.passed}


def test_a_wrong_base_of_the_sliding_layers_fails(models: Path, tmp_path: Path) -> None:
    bake(models / "gemma3", tmp_path / "right.gguf")
    wrong = copied(
        tmp_path / "right.gguf", tmp_path / "wrong.gguf", rope__freq_base_swa=1e6
    )
    assert verify(tmp_path / "right.gguf", levels=["table", "graph"]).passed
    report = verify(wrong, levels=["table", "graph"])
    assert "sliding layers: frequency error" in failed(report)
    assert "frequency executed, relative error" in failed(report)
    worst = next(
        check
        for check in report.checks
        if check.quantity == "frequency executed, relative error"
    )
    assert worst.detail.startswith("Qcur-0")
    assert "base 10000 wanted, 1000000 executed" in worst.why


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_which_layers_slide_if_nothing_is_said(
    models: Path, tmp_path: Path, name: str
) -> None:
    """As in upstream's files of Gemma 3: the live graph is the judge."""
    bake(models / name, tmp_path / "said.gguf")
    said = read_gguf(tmp_path / "said.gguf")
    pattern = f"{said.arch}.attention.sliding_window_pattern"
    silent = copied(tmp_path / "said.gguf", tmp_path / "silent.gguf", without=pattern)
    assert pattern not in read_gguf(silent).fields
    report = verify(silent, levels=["table", "graph"])
    assert report.passed, report.checks
    assert "sliding layers: frequency error" in {
        check.quantity for check in report.checks
    }


def test_layers_that_must_not_rotate_do_not(models: Path, tmp_path: Path) -> None:
    bake(models / "exaone4", tmp_path / "out.gguf")
    report = verify(tmp_path / "out.gguf", levels=["graph"])
    assert report.passed
    assert "48 of 64 layers rotate" in [check.detail for check in report.checks]


def test_a_layer_that_rotates_and_must_not_fails(models: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from ggext.proof.graph import check_graph, executed_by_node, observe
    from ggext.runtime.engine import Model
    from ggext.verify import expected_of

    bake(models / "exaone4", tmp_path / "out.gguf")
    gguf = read_gguf(tmp_path / "out.gguf")
    wanted = expected_of(gguf, None)
    other = replace(wanted, layers=("unrotated", *wanted.layers[1:]))
    with Model.open(gguf.path) as model:
        found = observe(model, other, 64)
    checks = check_graph(gguf, found, executed_by_node(found), gpu=False)
    wrong = [check for check in checks if not check.passed]
    assert any(
        "48 of 64 layers rotate; layer 0 is not as wanted" in check.detail
        for check in wrong
    )


def test_a_wrong_scale_of_the_scores_fails(models: Path, tmp_path: Path) -> None:
    """Upstream's key for mscale_all_dim 1 in a file whose checkpoint has none."""
    bake(models / "deepseek_v3", tmp_path / "right.gguf")
    wrong = copied(
        tmp_path / "right.gguf",
        tmp_path / "wrong.gguf",
        rope__scaling__yarn_log_multiplier=0.1,
    )
    assert verify(tmp_path / "right.gguf", levels=["table"]).passed
    assert failed(verify(wrong, levels=["table"])) == {
        "scale of the scores, relative error"
    }


def test_every_rotation_of_deepseek_4_is_seen(tmp_path: Path) -> None:
    """Of queries and keys, of what comes out of attention and is turned back, and of compressed
    keys, an indexer's too, which stand at every fourth position or every 128th."""
    from family_rows import ROWS
    from tiny import make_model

    row = ROWS["deepseek_v4"]
    checkpoint = make_model(tmp_path / "model", row.model_type, **row.config)
    convert(ConvertOptions(checkpoint, tmp_path / "right.gguf", row.rope))
    report = verify(tmp_path / "right.gguf", levels=["table", "graph"])
    assert report.passed, report.checks
    names = {node.node.rpartition("-")[0] for node in report.nodes}
    compressed = {f"{kind}_state_compress" for kind in ("csa", "hca", "lid")}
    assert names == {"q", "kv", "attn_derope", "lid_q_rope"} | compressed
    changes: dict[str, dict[str, Any]] = {
        "sliding": {"rope__freq_base": 2e4},
        "compressed": {"attention__compress_rope_freq_base": 1e4},
        "scaled": {"rope__scaling__type": "linear"},
    }
    for name, change in changes.items():
        wrong = copied(tmp_path / "right.gguf", tmp_path / f"{name}.gguf", **change)
        report = verify(wrong, levels=["graph"])
        assert not report.passed, name
        off = {n.node for n in report.nodes if n.error > 1e-2}
        others = {n.node for n in report.nodes if n.node.endswith("-0")}
        assert off == (
            others if name == "sliding" else {n.node for n in report.nodes} - others
        )
