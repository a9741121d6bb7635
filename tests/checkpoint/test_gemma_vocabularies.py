"""Gemma's vocabularies: runs of spaces, merges by rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vocabulary import EOS, Load, added, differences, save, strings, tokenizer_json

from ggext.checkpoint.files import CONTROL, USER_DEFINED
from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.errors import CheckpointError


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
