"""Scalings that a config.json states: kept, replaced, or not understood; contexts against factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import RopeError, UsageError
from ggext.gguf.open import read_gguf
from ggext.rope.config import read_rope
from ggext.rope.known import KNOWN, extension_of
from ggext.rope.methods import make_table
from ggext.rope.scaling import RopeScaling
from ggext.verify import verify

pytest.importorskip("transformers")

_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


def qwen3(**config: Any) -> dict[str, Any]:
    sizes = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    return sizes | {"max_position_embeddings": 40960, "rope_theta": 1e6} | config


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("method", "factor", "original", "context", "note"),
    [
        # Qwen 3's published recipe keeps the unextended length in max_position_embeddings
        ("yarn", 4.0, 32768, 131072, "40,960 is the length before the extension"),
        ("linear", 4.0, 32768, 131072, "40,960 is the length before the extension"),
        ("yarn", 4.0, 16384, 65536, "40,960 is the length before the extension"),
        # at most the original context, it says nothing (Qwen 2.5)
        ("yarn", 4.0, 40960, 163840, ""),
        # a claim beyond what the factor reaches is the author's, and told
        (
            "yarn",
            4.0,
            8192,
            40960,
            "max_position_embeddings / original context 5 disagree",
        ),
        # Llama 3.2 has 32 on 8192 and is meant for 131072: its factor is no multiple
        ("llama3", 32.0, 8192, 40960, ""),
    ],
)
def test_the_context_is_checked_against_the_factor(
    method: str, factor: float, original: int, context: int, note: str
) -> None:
    scaling = {
        "rope_type": method,
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    scaling |= _LLAMA3 if method == "llama3" else {}
    rope = read_rope(qwen3(rope_scaling=scaling), "neox")
    assert make_table(rope.scaling, rope.geometry).context == context
    assert any(note in line for line in rope.notes) if note else rope.notes == ()


#: Scalings that cannot be read, or not be run.
_UNREADABLE: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "magic", "factor": 4.0}},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"type": "yarn", "factor": "four"}},
    {"rope_scaling": [1]},
    {"rope_scaling": {"type": 7}},
    {
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [],
            "long_factor": [1.0],
        }
    },
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},  # which llama.cpp has not
    {"rope_scaling": {"type": "yarn", "factor": float("nan")}},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("claims") / "llama")


def with_config(folder: Path, out: Path, **values: Any) -> Path:
    """``folder`` under another config.json."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling"):
        config.pop(key, None)
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps(config | values))
    return out


@pytest.mark.parametrize(
    "config", _UNREADABLE, ids=lambda config: json.dumps(config)[:40]
)
def test_what_is_replaced_need_not_be_understood(
    config: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    model = with_config(llama, tmp_path / "model", **config)
    with pytest.raises(RopeError):
        plan(ConvertOptions(model, tmp_path / "own.gguf"))
    for rope in (
        RopeScaling("yarn", factor=4.0),
        RopeScaling("none"),
        RopeScaling("yarn", factor=4.0, attention_factor=1.0),
    ):
        planned = plan(ConvertOptions(model, tmp_path / "out.gguf", rope))
        assert planned.scaling is not None
        assert planned.scaling.method == rope.method
        assert planned.geometry.base == 10000.0
        assert planned.geometry.trained_context == 64


@pytest.mark.parametrize(
    ("own", "method"),
    [
        ({}, "none"),
        ({"rope_parameters": {"rope_type": "yarn", **_YARN}}, "yarn"),
        (
            {"rope_scaling": {"type": "yarn", **_YARN, "attention_factor": "much"}},
            "yarn",
        ),
        ({"rope_scaling": {"type": "yarn", **_YARN, "attn_factor": 0.9}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_an_attention_factor_alone_is_of_the_models_own_scaling(
    own: dict[str, Any], method: str, llama: Path, tmp_path: Path
) -> None:
    """It was refused: a scaling had to be named with it."""
    model = with_config(llama, tmp_path / "model", **own)
    first = convert(ConvertOptions(model, tmp_path / "out.gguf", attention_factor=1.25))
    again = convert(
        ConvertOptions(tmp_path / "out.gguf", tmp_path / "2.gguf", attention_factor=1.5)
    )
    for planned, gain in ((first, 1.25), (again, 1.5)):
        assert planned.scaling is not None
        assert (planned.scaling.method, planned.scaling.attention_factor) == (
            method,
            gain,
        )
        assert f"with the attention factor {gain:g} in place" in " ".join(planned.notes)
        assert verify(planned.out, levels={"table"}).passed


def test_an_attention_factor_beside_another_scaling_is_that_ones(
    llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="give it as that one's"):
        plan(
            ConvertOptions(
                llama,
                tmp_path / "x.gguf",
                RopeScaling("yarn", factor=4),
                attention_factor=1.2,
            )
        )


def test_a_scaling_that_is_not_understood_is_told(llama: Path, tmp_path: Path) -> None:
    said = {"type": "magic", "factor": 4.0, "original_max_position_embeddings": 32}
    model = with_config(llama, tmp_path / "model", rope_scaling=said)
    planned = plan(
        ConvertOptions(model, tmp_path / "out.gguf", RopeScaling("yarn", factor=4.0))
    )
    assert "replaced, not understood" in " ".join(planned.notes)
    assert "'magic' is unknown" in " ".join(planned.notes)
    assert planned.geometry.trained_context == 32  # which it said all the same


def test_a_window_is_no_obstacle_to_another_scaling(tmp_path: Path) -> None:
    own = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = make_model(
        tmp_path / "mistral",
        "mistral",
        sliding_window=32,
        rope_parameters=own | {"rope_theta": 1e4},
    )
    with pytest.raises(RopeError, match="sliding_window is 32"):
        plan(ConvertOptions(model, tmp_path / "own.gguf"))
    planned = plan(ConvertOptions(model, tmp_path / "out.gguf", RopeScaling("none")))
    assert planned.fields["llama.context_length"].value == 32


def test_a_malformed_recipe_can_be_baked_over(llama: Path, tmp_path: Path) -> None:
    from ggext.gguf.types import Field
    from ggext.gguf.writer import write_gguf

    first = tmp_path / "first.gguf"
    convert(ConvertOptions(llama, first, RopeScaling("yarn", factor=4.0)))
    made = plan(ConvertOptions(first, tmp_path / "unused.gguf"))
    broken = tmp_path / "broken.gguf"
    write_gguf(broken, made.fields | {"ggext.recipe": Field.of("{}")}, made.tensors)
    again = tmp_path / "again.gguf"
    convert(ConvertOptions(broken, again, RopeScaling("yarn", factor=2.0)))
    assert read_gguf(again).get("llama.context_length") == 128


def test_published_extensions_start_where_their_authors_do(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    sizes = {"head_dim": 16, "max_position_embeddings": 40960, "rope_parameters": rope}
    model = make_model(tmp_path / "qwen3", "qwen3", **sizes)
    asked = ConvertOptions(
        model, tmp_path / "out.gguf", RopeScaling("yarn", factor=4.0)
    )
    planned = plan(asked)
    assert planned.fields["qwen3.context_length"].value == 131072
    assert "original_context=32768" in " ".join(planned.notes)
    own = RopeScaling("yarn", factor=4.0, original_context=40960)
    assert (
        plan(ConvertOptions(model, asked.out, own)).fields["qwen3.context_length"].value
        == 163840
    )
    plain = plan(ConvertOptions(model, asked.out))
    assert plain.fields["qwen3.context_length"].value == 40960
    convert(ConvertOptions(model, asked.out))  # a GGUF file of it is known as well
    from_gguf = plan(
        ConvertOptions(asked.out, tmp_path / "b.gguf", RopeScaling("yarn", factor=4.0))
    )
    assert from_gguf.fields["qwen3.context_length"].value == 131072


def test_the_published_rows_hold_together() -> None:
    extended = [row for row in KNOWN if row.extension is not None]
    assert extended
    for row in extended:
        assert row.extension is not None
        trained, factor = row.extension.original_context or 0, row.extension.factor or 0
        assert 0 < trained <= row.context < factor * trained
        assert all(
            extension_of(arch, row.base, row.context) is row for arch in row.archs
        )
    assert extension_of("llama", 1e6, 40960) is None


def test_verify_fails_a_context_short_of_the_scaling(
    llama: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.gguf"
    convert(ConvertOptions(llama, short, RopeScaling("yarn", factor=4.0, context=100)))
    report = verify(short, levels=["table"])
    wrong = [check for check in report.checks if not check.passed]
    assert [check.quantity for check in wrong] == [
        "context short of the scaling's reach, tokens"
    ]
    stated = RopeScaling("yarn", factor=4.0, context=100, context_reason="a window")
    convert(ConvertOptions(llama, short, stated, force=True))
    assert verify(short, levels=["table"]).passed
