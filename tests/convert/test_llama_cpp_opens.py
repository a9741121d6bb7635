"""A file that llama.cpp cannot open is never written: its own word on the finished header, and the
table that stands for it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny import make_model

from ggext.checkpoint import model_card
from ggext.cli import main
from ggext.convert import ConvertOptions, convert, plan
from ggext.errors import GgufError, OutputError
from ggext.gguf.open import read_gguf
from ggext.gguf.types import Field, ValueType
from ggext.gguf.writer import write_gguf
from ggext.rope.scaling import RopeScaling
from ggext.runtime import refusals
from ggext.runtime.header_trial import HeaderTrial
from ggext.runtime.refusals import refusal

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _with_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GGEXT_FIRST_LOAD", raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("opens") / "my-phi3-tune")


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("opens") / "whole.gguf"
    convert(ConvertOptions(checkpoint, out))
    return out


def changed(whole: Path, out: Path, **fields: Field | None) -> Path:
    """The file with other fields, whose names have __ for a dot."""
    source = plan(ConvertOptions(whole, out))
    names = {name.replace("__", "."): field for name, field in fields.items()}
    kept = {key: field for key, field in source.fields.items() if key not in names}
    new = {key: field for key, field in names.items() if field is not None}
    write_gguf(out, kept | new, source.tensors)
    return out


def said(path: Path) -> str | None:
    """llama.cpp's own answer."""
    pytest.importorskip("llama_cpp")
    with HeaderTrial() as trial:
        trial.ask(path)
        return trial.refusal()


def test_a_whole_file_is_opened(whole: Path) -> None:
    assert said(whole) is None
    assert refusal(read_gguf(whole).fields) is None


_WRONG: dict[ValueType, Field] = {
    ValueType.UINT32: Field(ValueType.UINT64, 2),
    ValueType.FLOAT32: Field(ValueType.FLOAT64, 1.0),
    ValueType.STRING: Field(ValueType.UINT32, 1),
    ValueType.BOOL: Field(ValueType.UINT32, 1),
}
_ROWS = {
    **{f"llama.{key}": _WRONG[kind] for key, kind in refusals._ARCH_KEYS.items()},
    **{key: _WRONG[kind] for key, kind in refusals._KEYS.items()},
    "tokenizer.ggml.tokens": Field(ValueType.ARRAY, [1], ValueType.INT32),
    "tokenizer.ggml.merges": Field(ValueType.ARRAY, [1], ValueType.INT32),
    "tokenizer.ggml.scores": Field(ValueType.ARRAY, ["a"], ValueType.STRING),
    "tokenizer.ggml.token_type": Field(ValueType.ARRAY, [1.0], ValueType.FLOAT32),
}
#: Which the loader of Llama does not read.
_UNREAD = ("llama.attention.layer_norm_epsilon", "llama.attention.sliding_window")


@pytest.mark.parametrize("key", [key for key in _ROWS if key not in _UNREAD])
def test_the_table_says_what_the_library_does(
    whole: Path, tmp_path: Path, key: str
) -> None:
    wrong = changed(
        whole, tmp_path / "wrong.gguf", **{key.replace(".", "__"): _ROWS[key]}
    )
    assert said(wrong) is not None
    by_table = refusal(read_gguf(wrong).fields)
    assert by_table is not None
    assert key in by_table


def test_an_array_for_each_layer_is_opened(whole: Path, tmp_path: Path) -> None:
    heads = Field(ValueType.ARRAY, [2, 2], ValueType.INT32)
    each = changed(whole, tmp_path / "each.gguf", llama__attention__head_count_kv=heads)
    assert said(each) is None
    assert refusal(read_gguf(each).fields) is None


@pytest.mark.parametrize("name", ["Phi-3 mini", "my PHI3", "x phi-3.5"])
def test_a_name_that_means_something(whole: Path, tmp_path: Path, name: str) -> None:
    named = changed(whole, tmp_path / "named.gguf", general__name=Field.of(name))
    assert "unordered_map::at" in (said(named) or "")
    assert "give it another name" in (refusal(read_gguf(named).fields) or "")


@pytest.mark.parametrize("name", ["phi3-mini", "Phi-3-mini", "a-PHI3", "phi3"])
def test_no_name_that_is_written_means_something(name: str) -> None:
    written = model_card._without_meaning(name)
    assert not refusals.names_another_behaviour(written)
    assert "3" in written


def test_a_checkpoint_of_such_a_name_is_opened(whole: Path) -> None:
    """Its folder is named my-phi3-tune, its vocabulary has none of Phi 3's tokens."""
    assert read_gguf(whole).get("general.name") == "My Phi 3 Tune"


@pytest.mark.parametrize("installed", [True, False])
def test_what_llama_cpp_would_not_open_gets_no_name(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    installed: bool,
) -> None:
    """By its own word next to the copying, and by the table where it is not installed."""
    monkeypatch.setattr(model_card, "_without_meaning", lambda name: name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    if installed:
        pytest.importorskip("llama_cpp")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: None if name == "llama_cpp" else find(name),
        )
    out = tmp_path / "x.gguf"
    for split in (None, 500_000):
        with pytest.raises(
            OutputError, match=r"x\.gguf is not written, since llama.cpp would not"
        ):
            convert(ConvertOptions(checkpoint, out, split=split))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_abort_is_an_answer(whole: Path, tmp_path: Path) -> None:
    """llama.cpp asserts that there are layers, which ends the child and not this process."""
    none = changed(whole, tmp_path / "none.gguf", llama__block_count=Field.of(0))
    assert "GGML_ASSERT" in (said(none) or "")


def test_what_only_another_llama_cpp_knows_is_not_refused(
    whole: Path, tmp_path: Path
) -> None:
    other = {"general__architecture": Field.of("made-up")}
    assert said(changed(whole, tmp_path / "other.gguf", **other)) is None


def test_a_gguf_file_that_is_not_opened_is_not_made_another(
    whole: Path, tmp_path: Path
) -> None:
    kind: dict[str, Any] = {"llama__block_count": Field(ValueType.UINT64, 2)}
    wrong = changed(whole, tmp_path / "wrong.gguf", **kind)
    said_by_inspect = CliRunner().invoke(main, ["inspect", str(wrong)]).output
    assert "does not open this file: the key llama.block_count" in said_by_inspect
    before = wrong.read_bytes()
    for in_place in (False, True):
        out = None if in_place else tmp_path / "x.gguf"
        asked = ConvertOptions(
            wrong, out, RopeScaling("yarn", factor=4.0), in_place=in_place
        )
        with pytest.raises(GgufError, match="block_count has the wrong type uint64"):
            convert(asked)
    assert wrong.read_bytes() == before
    assert not (tmp_path / "x.gguf").exists()
