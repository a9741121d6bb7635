"""Vocabularies against llama.cpp: a vocabulary-only GGUF file must give the original's token ids.

The originals are the `tokenizers` and `sentencepiece` packages. Where llama.cpp itself differs,
the strings are restricted, and the reason stands next to the restriction.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from vocabulary import (
    BYTE_LEVEL,
    EOS,
    Load,
    added,
    alike,
    differences,
    llama2_json,
    save,
    split_steps,
    strings,
    tokenizer_json,
    train_sentencepiece,
    vocabulary_only,
    write_gguf,
)

from ggext.checkpoint.files import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary import spm as tokenizer_spm
from ggext.checkpoint.vocabulary.byte_level import SYMBOLS
from ggext.checkpoint.vocabulary.read import Vocabulary, read_vocabulary
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf
from ggext.runtime.llama import lib

DEMO_MODEL = ROOT / "ggext/data/demo-model"

# tokenizer.json ----------------------------------------------------------------------------------


def tiny(**changes: Any) -> dict[str, Any]:
    """The smallest good tokenizer.json: the bytes, one merge, one special token (257)."""
    vocab = {symbol: byte for byte, symbol in enumerate(SYMBOLS)} | {"ab": 256}
    return tokenizer_json(
        vocab, [["a", "b"]], BYTE_LEVEL | {"use_regex": True}, **changes
    )


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


# byte-level BPE ---------------------------------------------------------------------------------


def test_gpt_neox(shared: Path, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = shared / "tokenizers/gpt_neox_20b/tokenizer.json"
    shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    vocabulary = read_vocabulary(tmp_path, 50432)
    assert (vocabulary.pre, vocabulary.special_ids["eos"], vocabulary.add_bos) == (
        "gpt-2",
        0,
        False,
    )
    assert vocabulary.tokens[-1] == "[PAD50431]"
    specials = ("<|endoftext|>", "<|im_end|>", "RWKV", " " * 24, " " * 5)
    # the tokenizer turns text into NFC, llama.cpp does not (it is in the notes)
    texts = [t for t in strings(2500, specials) if unicodedata.is_normalized("NFC", t)]
    original = tokenizers.Tokenizer.from_file(str(path))
    assert differences(original, load(vocabulary), texts) == []
    assert "NFC" in vocabulary.notes[0]


def llama3_json(ranks_file: Path) -> dict[str, Any]:
    """Llama 3's tokenizer.json, made from its tiktoken ranks as transformers makes it."""
    lines = (line.split() for line in ranks_file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    symbols = SYMBOLS
    merges: list[list[str]] = []
    for token in ranks:
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [
            (ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks
        ]
        for _, _, left, right in sorted(pairs):
            merges.append(
                ["".join(symbols[byte] for byte in part) for part in (left, right)]
            )
    vocab = {
        "".join(symbols[byte] for byte in token): rank for token, rank in ranks.items()
    }
    names = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    )
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": names[0], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            names[0]: {"id": names[0], "ids": [len(vocab)], "tokens": [names[0]]}
        },
    }
    byte_level = BYTE_LEVEL | {"use_regex": True}
    return tokenizer_json(
        vocab,
        merges,
        split_steps(pretokenizers.LLAMA3),
        added_tokens=added(len(vocab), *names),
        post_processor={"type": "Sequence", "processors": [byte_level, template]},
        model={"ignore_merges": True},
    )


def test_llama3(shared: Path, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    save(
        tmp_path,
        llama3_json(shared / "tokenizers/llama3/tokenizer.model"),
        tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        generation_config={"eos_token_id": [128001, 128003, 128004]},
    )
    # the repository of Llama 3 may hold the tiktoken ranks under this name: no SentencePiece
    shutil.copy(shared / "tokenizers/llama3/tokenizer.model", tmp_path)
    vocabulary = read_vocabulary(tmp_path, 128256)
    assert vocabulary.pre == "llama-bpe"
    ids = {"bos": 128000, "eos": 128004, "eot": 128004, "eom": 128003}
    assert vocabulary.special_ids == ids
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.notes) == (
        True,
        False,
        (),
    )
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    llama = load(vocabulary)
    specials = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>")
    assert differences(original, llama, strings(2500, specials)) == []
    assert llama.encode("hi", add_special=True) == original.encode("hi").ids


ALWAYS = [row for row in pretokenizers.TABLE if row.joins is None]


@pytest.mark.parametrize("row", ALWAYS, ids=lambda row: row.name)
def test_each_pre_tokenizer(
    row: pretokenizers.PreTokenizer,
    crossing: tuple[dict[str, int], list[list[str]]],
    tmp_path: Path,
    load: Load,
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocab = crossing[0] | {
        "unmerged": len(crossing[0])
    }  # only a name that ignores merges gives it
    root = tokenizer_json(
        vocab,
        crossing[1],
        split_steps(*row.splits),
        model={"ignore_merges": row.ignore_merges},
    )
    vocabulary = read_vocabulary(save(tmp_path, root), len(vocab) + 1)
    assert vocabulary.pre == row.name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = alike(
        row.name, strings(2600 if not row.notes else 4500, (EOS, "unmerged"), seed=3)
    )
    assert len(texts) > 2000
    assert differences(original, load(vocabulary), texts) == []


FALCON = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        BYTE_LEVEL | {"use_regex": True},
        {"type": "Digits", "individual_digits": False},
        {
            "type": "Split",
            "pattern": {"Regex": "[0-9][0-9][0-9]"},
            "behavior": "Isolated",
            "invert": False,
        },
    ],
}
DEEPSEEK_LLM = split_steps(*pretokenizers.DEEPSEEK_LLM, pretokenizers.DIGIT)


@pytest.mark.parametrize(
    ("name", "pre_tokenizer", "joined"),
    [("falcon", FALCON, ["\u0120", "1"]), ("deepseek-llm", DEEPSEEK_LLM, ["1", "2"])],
    ids=["falcon", "deepseek-llm"],
)
def test_pre_tokenizers_that_are_equal_for_apt_merges(
    name: str,
    pre_tokenizer: dict[str, Any],
    joined: list[str],
    tmp_path: Path,
    load: Load,
) -> None:
    """llama.cpp leaves together what these cut: equal for a vocabulary that was trained with them,
    else refused."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer.from_str(
        json.dumps(tokenizer_json({"a": 0}, [], pre_tokenizer, added_tokens=[]))
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(strings(3000, seed=9), trainer)
    model = json.loads(trained.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    vocabulary = read_vocabulary(
        save(tmp_path, tokenizer_json(vocab, merges, pre_tokenizer)), len(vocab) + 1
    )
    assert vocabulary.pre == name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = alike(name, strings(4000, (EOS,), seed=3))
    assert len(texts) > 2000
    assert differences(original, load(vocabulary), texts) == []
    vocab["".join(joined)] = len(vocab)
    save(tmp_path, tokenizer_json(vocab, [*merges, joined], pre_tokenizer))
    with pytest.raises(CheckpointError, match="cuts numerals off"):
        read_vocabulary(tmp_path, len(vocab) + 1)


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        (e, {"dbrx": "dbrx", "qwen2": "qwen2"}[n])
        for e, n in (
            (pretokenizers.CL100K, "dbrx"),
            (pretokenizers.CL100K.replace("{1,3}", ""), "qwen2"),
        )
    ],
)
def test_other_words_for_the_same_matches(
    expression: str,
    name: str,
    crossing: tuple[dict[str, int], list[list[str]]],
    tmp_path: Path,
    load: Load,
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = read_vocabulary(
        save(tmp_path, tokenizer_json(*crossing, split_steps(expression))),
        len(crossing[0]) + 1,
    )
    assert vocabulary.pre == name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert differences(original, load(vocabulary), strings(2600, (EOS,), seed=3)) == []


def test_gemma_s_runs_of_spaces(tmp_path: Path, load: Load) -> None:
    """Merges that grow a run go first: no scores say so, and llama.cpp cuts such runs off as
    user-defined tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    runs = [
        ["\u2581" * a, "\u2581" * b]
        for n in range(6, 1, -1)
        for a, b in ((n - k, k) for k in range(1, n))
    ]
    runs.sort(
        key=lambda pair: -len(pair[0])
    )  # as published: those of one token are not next to each other
    merges = [*runs, ["\u2581", "t"], ["h", "e"], ["\u2581t", "he"]]
    texts = [f"<0x{byte:02X}>" for byte in range(256)] + sorted(
        {c for m in merges for c in "".join(m)}
    )
    vocab = {
        text: i
        for i, text in enumerate(dict.fromkeys([*texts, *("".join(m) for m in merges)]))
    }
    split = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    root = tokenizer_json(
        vocab, merges, split, normalizer=replace, model={"byte_fallback": True}
    )
    vocabulary = read_vocabulary(save(tmp_path, root), len(vocab) + 1)
    assert vocabulary.add_space_prefix is False
    assert vocabulary.token_types[vocab["\u2581" * 6]] == USER_DEFINED
    assert vocabulary.tokens[vocab["\u2581" * 6]] == " " * 6
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [
        "the  the",
        " " * 20 + "the",
        *(text for text in strings(2500, ("   ",)) if "\u2581" not in text),
    ]
    assert differences(original, load(vocabulary), texts) == []


def _gemma4_json() -> tuple[dict[str, Any], dict[str, int]]:
    """Merges by rank that no scores can say: those of one token stand apart from each other."""
    merges = [
        ["\n", "\n"],
        ["\n\n", "\n"],
        ["\u2581", "\u2581"],
        ["\u2581\u2581", "\u2581"],
    ]
    merges += [
        ["t", "h"],
        ["th", "e"],
        ["\u2581", "the"],
        ["h", "e"],
        ["t", "he"],
        ["\u2581t", "he"],
    ]
    merges += [
        ["\u2581", "t"],
        ["1", "2"],
        ["l", "l"],
        ["H", "e"],
        ["He", "ll"],
        ["Hell", "o"],
    ]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(
        {c for merge in merges for c in "".join(merge)} | set("abcdefg!.,")
    )
    marks = ["<bos>", "<|channel>", "<channel|>", EOS]
    texts = [*marks, *bytes_, *letters, *("".join(m) for m in merges)]
    vocab = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    split = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    root = tokenizer_json(
        vocab,
        merges,
        split,
        normalizer=replace,
        added_tokens=added(0, *marks),
        model={"byte_fallback": True, "fuse_unk": True},
    )
    return root, vocab


def test_gemma_4_merges_by_rank(tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    root, vocab = _gemma4_json()
    vocabulary = read_vocabulary(save(tmp_path, root), len(vocab) + 1, by_rank=True)
    assert (vocabulary.model, vocabulary.pre) == ("gemma4", "gemma4")
    assert vocabulary.token_types[vocab["<bos>"]] == CONTROL
    assert (
        vocabulary.token_types[vocab["<|channel>"]] == USER_DEFINED
    )  # a part of the answer
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [
        "the\n\n\n\n\nthe the",
        "the Hello\n12 the",
        *strings(2500, ("\n\n", "the")),
    ]
    llama = load(vocabulary)
    found = [
        text
        for text in texts
        if original.encode(text, add_special_tokens=False).ids != llama.encode(text)
    ]
    assert found == []


def test_tokens_across_lines_are_refused(tmp_path: Path) -> None:
    root, vocab = _gemma4_json()
    root["model"]["vocab"]["the\n"] = len(vocab)
    root["model"]["merges"].append(["the", "\n"])
    with pytest.raises(CheckpointError, match="crosses the end of a line"):
        read_vocabulary(save(tmp_path, root), len(vocab) + 1, by_rank=True)


@pytest.mark.parametrize("name", ["tekken", "granite-embed-multi-97m"])
def test_a_long_run_does_not_end_the_process(
    name: str, crossing: tuple[dict[str, int], list[list[str]]], tmp_path: Path
) -> None:
    """llama.cpp's std::regex overflows the stack on 30,000 characters of a kind; the model cuts the
    run."""
    from ggext.runtime.engine import Model

    row = next(row for row in pretokenizers.TABLE if row.name == name)
    root = tokenizer_json(
        *crossing, split_steps(*row.splits), model={"ignore_merges": row.ignore_merges}
    )
    vocabulary = read_vocabulary(save(tmp_path, root), len(crossing[0]) + 1)
    path = tmp_path / "long.gguf"
    write_gguf(vocabulary, path)
    handle = lib().llama_model_load_from_file(str(path).encode(), vocabulary_only())
    model = Model(path, read_gguf(path), handle, None, 0)
    try:
        text = (
            "the "
            + "a" * 50_000
            + " end "
            + "\u0939\u093f" * 25_000
            + " end "
            + "=" * 50_000
            + EOS
        )
        tokens = model.tokenize(text, parse_special=True)
        assert b"".join(
            map(model.token_to_piece, tokens)
        ).decode() == text.removesuffix(EOS)
        assert model.is_eog(tokens[-1])
    finally:
        model.close()


@pytest.mark.parametrize(
    ("expression", "name", "text", "note"),
    [
        (pretokenizers.TEKKEN, "tekken", "e\u0301", "combining marks"),
        (
            pretokenizers.GPT4O,
            "granite-embed-multi-97m",
            "\xc0B",
            "in which the case changes",
        ),
    ],
    ids=["tekken", "gpt-4o"],
)
def test_the_noted_difference_is_real(
    expression: str,
    name: str,
    text: str,
    note: str,
    crossing: tuple[dict[str, int], list[list[str]]],
    tmp_path: Path,
    load: Load,
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    root = tokenizer_json(
        *crossing, split_steps(expression), model={"ignore_merges": True}
    )
    vocabulary = read_vocabulary(save(tmp_path, root), len(crossing[0]) + 1)
    assert vocabulary.pre == name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert differences(original, load(vocabulary), [text]) == [text] * 2
    assert any(note in line for line in vocabulary.notes)
    assert any("before May 2026" in line for line in vocabulary.notes) is (
        name == "granite-embed-multi-97m"
    )


def test_demo_model(load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if not (DEMO_MODEL / "tokenizer.json").exists():
        pytest.skip("ggext/data/demo-model has no tokenizer.json yet")
    size = json.loads((DEMO_MODEL / "config.json").read_text())["vocab_size"]
    vocabulary = read_vocabulary(DEMO_MODEL, size)
    original = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    specials = [
        t
        for t, k in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
        if k == 3
    ]
    assert vocabulary.pre == "gpt-2"
    assert differences(original, load(vocabulary), strings(2500, specials)) == []


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, False, "smollm"),
        (split_steps(pretokenizers.GPT2), False, "gpt-2"),
        (split_steps(pretokenizers.LLAMA3), False, "dbrx"),
        # every token can be merged, so that ignore_merges makes no difference
        (split_steps(pretokenizers.QWEN2), True, "qwen2"),
        (split_steps(pretokenizers.TEKKEN), False, "tekken"),
        # the name that leaves combining marks with their letters goes before the other one
        (split_steps(pretokenizers.GPT4O), False, "granite-embed-multi-97m"),
    ],
    ids=[
        "gpt2",
        "digits",
        "gpt2-split",
        "llama3-merging",
        "qwen2-ignoring",
        "tekken-merging",
        "gpt4o-merging",
    ],
)
def test_pre_tokenizer_name(
    tmp_path: Path, pre_tokenizer: object, ignore_merges: bool, name: str
) -> None:
    root = tiny(model={"ignore_merges": ignore_merges}) | {
        "pre_tokenizer": pre_tokenizer
    }
    assert read_vocabulary(save(tmp_path, root), 258).pre == name


# special tokens, flags, templates ---------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    config = {
        "eos_token": EOS,
        "bos_token": EOS,
        "sep_token": EOS,
        "pad_token": "[none]",
    }
    templates = [
        {"name": "default", "template": "D"},
        {"name": "tool use", "template": "T"},
    ]
    root = tiny() | {
        "added_tokens": [*added(257, EOS), *added(258, "\u2581x", special=False)]
    }
    save(tmp_path, root, tokenizer_config=config | {"chat_template": templates})
    metadata = read_vocabulary(tmp_path, 260).metadata()
    tokens = metadata.pop("tokenizer.ggml.tokens")
    types = metadata.pop("tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[255:] == ["\u00ff", "ab", EOS, "\u2581x", "[PAD259]"]
    assert types[255:] == [NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED]
    assert metadata == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.eot_token_id": 257,
        "tokenizer.ggml.seperator_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_a_chat_template_file_goes_first(tmp_path: Path) -> None:
    """chat_template.json is a processor's: transformers' tokenizers do not read it."""
    save(
        tmp_path, tiny(), tokenizer_config={"eos_token": EOS, "chat_template": "config"}
    )
    assert read_vocabulary(tmp_path, 258).chat_template == "config"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert read_vocabulary(tmp_path, 258).chat_template == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert read_vocabulary(tmp_path, 258).chat_template == "jinja"


def test_stops_beside_eos(tmp_path: Path) -> None:
    root = tiny() | {"added_tokens": added(257, EOS, "<stop>", "<halt>", "<quit>")}
    config = {"eos_token_id": [257, 258, 259, 260]}
    save(tmp_path, root, tokenizer_config={}, config=config)
    vocabulary = read_vocabulary(tmp_path, 261)
    assert vocabulary.special_ids == {"eos": 257, "eot": 257, "eom": 258}
    assert ["'<halt>'" in note or "'<quit>'" in note for note in vocabulary.notes] == [
        True,
        True,
    ]


@pytest.mark.parametrize(("end", "eom"), [(258, {"eom": 258}), (3, {})])
def test_an_end_of_the_document_is_a_stop(
    tmp_path: Path, end: int, eom: dict[str, int]
) -> None:
    """Hunyuan's; not the 3 that its class has by default, where that is an ordinary token."""
    root = tiny() | {"added_tokens": added(257, EOS, "<eod>")}
    save(
        tmp_path,
        root,
        tokenizer_config={"eos_token": EOS},
        config={"eod_token_id": end},
    )
    assert read_vocabulary(tmp_path, 259).special_ids == {"eos": 257, "eot": 257, **eom}


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


# hostile and broken files -----------------------------------------------------------------------

TINY = tiny()
VOCAB = TINY["model"]["vocab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": []}, "model is '.*', expected dict"),
        ({"model": {"type": "Unigram"}}, "is a 'Unigram' tokenizer"),
        ({"model": {"type": "BPE", "vocab": {}}}, "an empty vocabulary"),
        (
            {"model": {"vocab": VOCAB | {"c2": 256}}},
            "has the id 256, which another token has too",
        ),
        ({"model": {"vocab": VOCAB | {"c2": -1}}}, "has the id '-1'"),
        ({"model": {"vocab": VOCAB | {"c2": True}}}, "has the id 'True'"),
        (
            {"model": {"vocab": VOCAB | {"c2": 1 << 40}}},
            "expected an integer from 0 to 4194303",
        ),
        ({"model": {"vocab": VOCAB | {"": 257}}}, "has 0 characters"),
        ({"model": {"vocab": VOCAB | {"x" * 2000: 257}}}, "has 2000 characters"),
        ({"model": {"vocab": VOCAB | {"\ud800": 257}}}, "is not valid Unicode"),
        ({"model": {"vocab": VOCAB | {"a\0": 257}}}, "contains a NUL"),
        (
            {"model": {"vocab": VOCAB, "merges": [["a", "zz"]]}},
            "merge 0 .* names the token 'zz'",
        ),
        ({"model": {"vocab": VOCAB, "merges": ["a b c"]}}, "expected two tokens"),
        ({"model": {"vocab": VOCAB, "merges": [["a", 1]]}}, "expected two tokens"),
        (
            {"model": TINY["model"] | {"end_of_word_suffix": "</w>"}},
            "end_of_word_suffix '</w>'",
        ),
        ({"added_tokens": [1]}, "an added token is no object"),
        ({"added_tokens": [{"id": 257}]}, "expected a string"),
        (
            {"added_tokens": added(256, EOS, EOS)},
            "the tokens 256 and 257 have the same text",
        ),
        (
            {"added_tokens": []},
            "eos_token is '<|end|>', which is not in the vocabulary",
        ),
        (
            {"added_tokens": added(257, EOS, "a1", "a2")},
            "has 260 tokens .* vocab_size .* is 258",
        ),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer .*NFKC.* has no equal"),
        ({"pre_tokenizer": None}, "the pre_tokenizer step 'None' has no equal"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "step 'Whitespace' has no equal"),
        ({"pre_tokenizer": DIGITS}, "does not end in its one ByteLevel step"),
        (
            {"pre_tokenizer": split_steps(r"\w+")},
            r"no pre-tokenizer with the expressions '.*w\+'",
        ),
        (
            {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
            "has add_prefix_space",
        ),
        (
            {"post_processor": {"type": "BertProcessing"}},
            "post_processor 'BertProcessing'",
        ),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {}}],
                }
            },
            "a token of the post_processor is 'None'",
        ),
    ],
)
def test_broken_tokenizer_json(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save(tmp_path, TINY | changes)
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        read_vocabulary(tmp_path, 258)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"[1]", "holds a list, expected a JSON object"),
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"[" * 100_000, "is not valid JSON"),
        ("tokenizer.json", b"\xff\xfe", "is not UTF-8 text"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", None),
        ("tokenizer_config.json", b'{"eos_token": 5}', "expected a string"),
        (
            "tokenizer_config.json",
            b'{"add_bos_token": 1, "eos_token": null}',
            "no end-of-sequence",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "add_bos_token": 1}',
            "expected bool",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "add_bos_token": true}',
            "no bos_token",
        ),
        (
            "tokenizer_config.json",
            b'{"eos_token": "ab", "chat_template": 3}',
            "chat_template is a",
        ),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"x": {}}}',
            "has the entry 'x'",
        ),
        (
            "special_tokens_map.json",
            b'{"bos_token": "?!?"}',
            "is not in the vocabulary",
        ),
        ("config.json", b'{"bos_token_id": 99999}', "the vocabulary has no such token"),
        ("config.json", b'{"bos_token_id": 1.5}', "has the id '1.5'"),
        ("added_tokens.json", b'{"<new>": "1"}', "has the id"),
        ("chat_template.jinja", b"\xff", "is not UTF-8 text"),
    ],
)
def test_broken_files(
    tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    save(tmp_path, TINY)
    (tmp_path / name).write_bytes(content)
    if (
        message is None
    ):  # tokenizer.json is there: a tokenizer.model of another kind is passed over
        assert read_vocabulary(tmp_path, 258).pre == "gpt-2"
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path, 258)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no tokenizer\.json, tokenizer\.model, tekken\.json or vocab\.json",
    ):
        read_vocabulary(tmp_path, 10)
    ranks = (shared / "tokenizers/llama3/tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(
        ranks[:-20]
    )  # no longer the file that is known
    with pytest.raises(
        CheckpointError,
        match="is a list of tiktoken ranks, which says nothing of words",
    ):
        read_vocabulary(tmp_path, 10)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="vocab_size is 0"):
        read_vocabulary(tmp_path, 0)
    monkeypatch.setattr("ggext.checkpoint.vocabulary.read.MAX_FILE_BYTES", 1 << 10)
    with pytest.raises(CheckpointError, match="is larger than"):
        read_vocabulary(save(tmp_path, TINY), 258)


def test_every_cut_and_flip_of_a_sentencepiece_model(
    shared: Path, tmp_path: Path
) -> None:
    good = (shared / "models/stories260K/tokenizer.model").read_bytes()
    source = random.Random(5)
    refused = 0
    for _ in range(300):
        bad = bytearray(
            good[: source.randrange(len(good))] if source.random() < 0.5 else good
        )
        for _ in range(source.randrange(4)):
            if bad:
                bad[source.randrange(len(bad))] = source.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(bad)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer_spm, "_usual_pieces", lambda _: ([], 0))
            by_field = outcome(tmp_path)
        assert outcome(tmp_path) == by_field
        refused += isinstance(by_field, str) and "\n" not in by_field
    assert refused > 100


def outcome(folder: Path) -> Vocabulary | str:
    try:
        return read_vocabulary(folder, 512)
    except CheckpointError as error:
        return str(error)


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
