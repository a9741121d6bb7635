"""SentencePiece vocabularies without byte tokens: written with a note, and run with the unknown
token for what no piece has, where llama.cpp alone would end the process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model
from vocabulary import strings, train_sentencepiece

from ggext.convert import ConvertOptions, convert
from ggext.gguf.reader import GgufFile
from ggext.runtime.unknown_characters import UnknownCharacters

pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

_UNSEEN = "\u5b57\U0001f680\u0f00"  # in no text that the vocabulary is trained on


@pytest.fixture(scope="module", params=["bpe", "char", "bpe-without-prefix"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any, str]]:
    """SentencePiece's processor, ggext's model, and the notes of the conversion."""
    from ggext.runtime.engine import Model

    folder = tmp_path_factory.mktemp("unknown")
    kind = request.param.split("-")[0]
    options = {
        "byte_fallback": False,
        "model_type": kind,
        "remove_extra_whitespaces": False,
    }
    if request.param != kind:
        options |= {"add_dummy_prefix": False, "user_defined_symbols": ["[X]"]}
    processor = train_sentencepiece(folder, character_coverage=0.99, **options)
    model = make_model(folder / "model", vocab_size=processor.vocab_size())
    (model / "tokenizer.json").unlink()
    (folder / "tokenizer.model").rename(model / "tokenizer.model")
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"})
    )
    done = convert(ConvertOptions(model, folder / "x.gguf"))
    with Model.open(folder / "x.gguf") as opened:
        yield processor, opened, " ".join(done.notes)


def test_the_ids_are_sentencepieces(trained: tuple[Any, Any, str]) -> None:
    processor, model, notes = trained
    assert (
        "of the 256 byte tokens: for characters that no piece has ggext takes" in notes
    )
    texts = [
        text for text in strings(300) if "\u2581" not in text and "[X]" not in text
    ]
    texts += [
        "",
        " ",
        _UNSEEN,
        f"a{_UNSEEN}b",
        f"{_UNSEEN} a {_UNSEEN}{_UNSEEN}",
        "a\udc80b"[:1],
    ]
    wrong = [
        text
        for text in texts
        if model.tokenize(text, add_special=False) != processor.encode(text)
    ]
    assert wrong == []
    assert any(processor.unk_id() in processor.encode(text) for text in texts)


def test_special_tokens_are_found_between_unknown_characters(
    trained: tuple[Any, Any, str],
) -> None:
    processor, model, _ = trained
    eos = processor.eos_id()
    ids = model.tokenize(f"a{_UNSEEN}</s>a", add_special=True, parse_special=True)
    assert ids.count(eos) == 1
    assert ids.count(processor.unk_id()) == 1
    assert ids[0] == processor.bos_id()
    plain = model.tokenize("</s>", add_special=False)
    assert eos not in plain or processor.encode("</s>") == plain


def test_a_text_that_cannot_be_encoded_harms_nobody(
    trained: tuple[Any, Any, str],
) -> None:
    _, model, _ = trained
    assert model.tokenize("a\udc80b\0", add_special=False)


def test_a_vocabulary_with_all_bytes_is_llama_cpps_own_affair(
    stories_gguf: Path,
) -> None:
    from ggext.gguf.open import read_gguf

    header: GgufFile = read_gguf(stories_gguf)
    assert UnknownCharacters.of(header) is None
