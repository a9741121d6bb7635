"""Models that are loaded, closed, refused, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggext.errors import GgextError, GgufError, ModelError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import llama  # noqa: E402
from ggext.runtime.engine import CancelledError, Model, Session  # noqa: E402


@pytest.mark.parametrize("tokens", [[], [747], [-1], [1, 2**40]])
def test_tokens_that_are_none_are_refused(session: Session, tokens: list[int]) -> None:
    with pytest.raises(ModelError, match="token"):
        session.evaluate(tokens)


def test_closed_things_say_so(small_gguf: Path) -> None:
    model = Model.open(small_gguf)
    session = Session(model)
    session.close()
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.evaluate([1])
    other = Session(model)
    model.close()
    model.close()
    for use in (
        lambda: other.evaluate([1]),
        lambda: model.tokenize("a"),
        lambda: Session(model),
    ):
        with pytest.raises(ModelError, match="closed"):
            use()


@pytest.mark.shared("models/stories260K")
def test_the_vocabulary_of_sentencepiece(stories: Model) -> None:
    assert (stories.bos, stories.eos, stories.adds_bos) == (1, 2, True)
    assert stories.tokenize("Once")[0] == 1
    assert stories.tokenize("Once", add_special=False)[0] != 1
    assert 2 in stories.tokenize("</s>", parse_special=True)
    assert 2 not in stories.tokenize("</s>")
    assert stories.is_eog(2)
    assert stories.is_control(1)
    assert stories.token_to_piece(1) == b""
    assert stories.token_text(1) == "<s>"
    text = "Zoë ☃\0🦙"
    tokens = stories.tokenize(text, add_special=False)
    assert b"".join(map(stories.token_to_piece, tokens)).decode() == " " + text


def test_the_vocabulary(model: Model) -> None:
    assert (model.bos, model.eos, model.adds_bos) == (742, 746, False)
    assert model.eos in model.tokenize("<|end|>", parse_special=True)
    assert model.eos not in model.tokenize("<|end|>")
    assert (model.is_eog(model.eos), model.is_control(model.bos)) == (True, True)
    assert model.token_to_piece(model.eos) == b""
    assert model.token_text(model.eos) == "<|end|>"
    text = "Zoë ☃\0🦙"
    assert b"".join(map(model.token_to_piece, model.tokenize(text))).decode() == text


def test_a_model_says_what_it_is(model: Model) -> None:
    assert (model.architecture, model.n_ctx_train, model.n_vocab) == ("llama", 512, 747)
    assert model.n_params == 649_472
    assert "llama" in model.description


def test_nothing_of_llama_cpp_reaches_the_terminal(
    small_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Model.open(small_gguf) as model, Session(model) as session:
        session.evaluate([1])
    assert capfd.readouterr() == ("", "")


def test_a_load_can_be_cancelled(small_gguf: Path) -> None:
    with pytest.raises(CancelledError):
        Model.open(small_gguf, progress=lambda _: False)


def test_an_error_in_the_load_callback_comes_through(small_gguf: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Model.open(small_gguf, progress=lambda _: bool(1 / 0))


def test_a_truncated_file_never_reaches_llama_cpp(
    small_gguf: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small_gguf.read_bytes()[:-1000])
    with pytest.raises(GgufError, match="truncated"):
        Model.open(cut)


def test_a_refusal_quotes_llama_cpps_reason(small_gguf: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(
        small_gguf.read_bytes().replace(
            b"blk.2.attn_norm.weight", b"blk.2.attn_nork.weight"
        )
    )
    with pytest.raises(
        ModelError, match=r"llama\.cpp says: .*attn_norm\.weight' not found"
    ):
        Model.open(other)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(GgextError, match=str(path)):
            Model.open(path)


def test_another_version_of_the_binding_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llama_cpp.__version__", "0.3.35")
    monkeypatch.setattr(llama, "_module", None)
    with pytest.raises(
        ModelError, match=r'0\.3\.35.*pip install "llama-cpp-python==0\.3\.36"'
    ):
        llama.lib()


def test_rope_is_left_as_the_file_says(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    init = llama.lib().llama_init_from_model

    def watched(handle: Any, params: Any) -> Any:
        seen.append(params)
        return init(handle, params)

    monkeypatch.setattr(llama.lib(), "llama_init_from_model", watched)
    with Session(model):
        pass
    given, default = seen[0], llama.lib().llama_context_default_params()
    names = [n for n, *_ in default._fields_ if n.startswith(("rope_", "yarn_"))]
    assert len(names) == 8
    assert all(getattr(given, n) == getattr(default, n) for n in names)
