"""Byte-level vocabularies against llama.cpp: the ids are those of the `tokenizers` package.

Where llama.cpp itself differs, the strings are restricted, and the reason stands next to the
restriction.
"""

from __future__ import annotations

import base64
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from vocabulary import (
    BYTE_LEVEL,
    EOS,
    Load,
    added,
    alike,
    differences,
    save,
    split_steps,
    strings,
    tokenizer_json,
    vocabulary_only,
    write_gguf,
)

from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary.byte_level import SYMBOLS
from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.errors import CheckpointError
from ggext.gguf.open import read_gguf
from ggext.runtime.llama import lib

pytestmark = pytest.mark.slow

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
