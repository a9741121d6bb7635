"""SentencePiece vocabularies against llama.cpp: the ids are those of the `sentencepiece` package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from vocabulary import (
    Load,
    differences,
    llama2_json,
    save,
    strings,
    tokenizer_json,
    train_sentencepiece,
)

from ggext.checkpoint.files import BYTE, CONTROL, UNUSED, USER_DEFINED
from ggext.checkpoint.vocabulary import spm as tokenizer_spm
from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.errors import CheckpointError

# SentencePiece ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "size"), [("tokenizers/llama2", 32000), ("models/stories260K", 512)]
)
def test_sentencepiece_ids(shared: Path, load: Load, folder: str, size: int) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(
        str(shared / folder / "tokenizer.model")
    )
    vocabulary = read_vocabulary(shared / folder, size)
    assert vocabulary.tokens == tuple(original.id_to_piece(i) for i in range(size))
    assert vocabulary.scores == tuple(original.get_score(i) for i in range(size))
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (
        1,
        0,
        1,
    )
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
    llama = load(vocabulary)
    texts = strings(2500, ("<s>", "</s>", "<unk>"))
    assert [text for text in texts if original.encode(text) != llama.encode(text)] == []
    assert llama.encode("hi", add_special=True) == [1, *original.encode("hi")]
    assert llama.encode("</s>", parse_special=True) == [2]


def test_sentencepiece_without_prefix_and_with_user_defined_pieces(
    tmp_path: Path, load: Load
) -> None:
    original = train_sentencepiece(
        tmp_path,
        user_defined_symbols=["[INST]", "\u2581\u2581\u2581"],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )
    vocabulary = read_vocabulary(tmp_path, len(original) + 2)
    assert vocabulary.add_space_prefix is False
    assert vocabulary.token_types[original.piece_to_id("[INST]")] == USER_DEFINED
    assert vocabulary.tokens[original.piece_to_id("\u2581\u2581\u2581")] == "   "
    assert vocabulary.token_types[-2:] == (UNUSED, UNUSED)
    assert vocabulary.notes == ()
    llama = load(vocabulary)
    # U+2581 itself in a text is a space to SentencePiece before user-defined pieces are looked for
    texts = [text for text in strings(2500, ("[INST]", "   ")) if "\u2581" not in text]
    assert [text for text in texts if original.encode(text) != llama.encode(text)] == []


def test_sentencepiece_that_normalizes_says_so(tmp_path: Path) -> None:
    train_sentencepiece(
        tmp_path, normalization_rule_name="nfkc", user_defined_symbols=["[X]"]
    )
    notes = read_vocabulary(tmp_path, 1000).notes
    assert [note.split(",")[0] for note in notes] == [
        "the SentencePiece model normalizes text (precompiled_charsmap)",
        "the SentencePiece model removes repeated spaces",
        "llama.cpp puts a space between a user-defined piece and the text after it",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "is a SentencePiece Unigram model"),
        ({"treat_whitespace_as_suffix": True}, "has treat_whitespace_as_suffix"),
    ],
    ids=["unigram", "suffix"],
)
def test_sentencepiece_that_llama_cpp_cannot_do(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    train_sentencepiece(tmp_path, **options)
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tmp_path, 1000)


def test_llama2_json_without_its_model(
    shared: Path, tmp_path: Path, load: Load
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = read_vocabulary(shared / "tokenizers/llama2", 32000)
    prepend = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    root = llama2_json(model, normalizer={"type": "Sequence", "normalizers": prepend})
    save(tmp_path, root, tokenizer_config={"eos_token": {"content": "</s>"}})
    vocabulary = read_vocabulary(tmp_path, 32000)
    assert vocabulary.tokens == model.tokens
    assert vocabulary.token_types == model.token_types
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert (vocabulary.model, vocabulary.add_bos, vocabulary.add_space_prefix) == (
        "llama",
        1,
        1,
    )
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert differences(original, load(vocabulary), strings(2500, ("<s>", "</s>"))) == []

    # Metaspace (transformers' legacy=False): no space before a text that begins with one, and
    # none after a special token, where llama.cpp always puts one
    metaspace = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
    }
    root = llama2_json(model, pre_tokenizer=metaspace | {"split": False})
    save(tmp_path, root, tokenizer_config={"eos_token": "</s>"})
    vocabulary = read_vocabulary(tmp_path, 32000)
    assert "Metaspace" in vocabulary.notes[0]
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [
        text for text in strings(2500) if text and not text.startswith((" ", "\u2581"))
    ]
    assert differences(original, load(vocabulary), texts) == []


def test_sentencepiece_added_tokens(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "models/stories260K/tokenizer.model", tmp_path)
    decoder = {
        "513": {"content": "<|im_end|>", "special": True},
        "1": {"content": "<s>"},
    }
    config = {
        "added_tokens_decoder": decoder,
        "eos_token": "<|im_end|>",
        "add_eos_token": True,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 512}')
    vocabulary = read_vocabulary(tmp_path, 515)
    assert vocabulary.tokens[512:] == ("<extra>", "<|im_end|>", "[PAD514]")
    assert vocabulary.token_types[512:] == (USER_DEFINED, CONTROL, UNUSED)
    assert (vocabulary.token_types[1], vocabulary.token_types[3]) == (CONTROL, BYTE)
    assert vocabulary.special_ids == {"bos": 1, "eos": 513, "unknown": 0, "eot": 513}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, True)


def test_pieces_are_read_at_once(shared: Path) -> None:
    """All of a usual file: the other way is the slow one."""
    data = (shared / "tokenizers/llama2/tokenizer.model").read_bytes()
    pieces, end = tokenizer_spm._usual_pieces(data)
    assert len(pieces) == 32_000
    assert {number for number, _, _ in tokenizer_spm.fields(data[end:])} == {2, 3}


def test_llama_form_that_scores_cannot_say(tmp_path: Path) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["a", "b", "c", "\u2581", "ab", "bc", "abc"]
    vocab = {text: i for i, text in enumerate([*bytes_, *letters])}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    good = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    for merges, message in (
        (good, None),
        (good[:3], "would merge 'a' \\+ 'bc', for which there is no merge"),
        ([good[2], good[0], good[3], good[1]], "are not next to each other"),
    ):
        root = tokenizer_json(
            vocab, merges, None, normalizer=replace, model={"byte_fallback": True}
        )
        save(tmp_path, root)
        if message is None:
            vocabulary = read_vocabulary(tmp_path, len(vocab) + 1)
            assert vocabulary.add_space_prefix is False
            assert vocabulary.scores is not None
            assert vocabulary.scores[-4:-1] == (-0.0, -1.0, -2.0)
            continue
        with pytest.raises(CheckpointError, match=message):
            read_vocabulary(tmp_path, len(vocab) + 1)
