"""Published vocabularies, from the vocabulary files next to llama.cpp's source (its models/ folder).

They are not part of this project: ``GGEXT_LLAMA_CPP_MODELS=…/llama.cpp/models`` names the folder,
and without it these tests are skipped. Each file's tokens and merges are put back into a
tokenizer.json with the pre-tokenizer that the model was published with; ``tokenizers`` on that is
the original, and llama.cpp on what we make of it is compared. The ``.inp`` and ``.out`` files
next to them are texts with the token ids of the original tokenizers.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vocabulary import (
    BYTE_LEVEL,
    Load,
    differences,
    save,
    split_steps,
    strings,
    tokenizer_json,
)

from ggext.checkpoint.files import CONTROL, USER_DEFINED
from ggext.checkpoint.vocabulary import pretokenizers as pre
from ggext.checkpoint.vocabulary.read import read_vocabulary
from ggext.gguf.open import read_gguf

FOLDER = os.environ.get("GGEXT_LLAMA_CPP_MODELS")
pytestmark = pytest.mark.skipif(
    FOLDER is None,
    reason="GGEXT_LLAMA_CPP_MODELS names no folder of llama.cpp's vocabularies",
)

DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"normalizer": {"type": "NFC"}}
GPT2 = BYTE_LEVEL | {"use_regex": True}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
FALCON = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        GPT2,
        {"type": "Digits", "individual_digits": False},
        {
            "type": "Split",
            "pattern": {"Regex": "[0-9][0-9][0-9]"},
            "behavior": "Isolated",
            "invert": False,
        },
    ],
}


@dataclass(frozen=True)
class Published:
    """``unlike``: characters on which the note says that llama.cpp differs; texts with them are
    left out."""

    pre_tokenizer: object
    name: str
    other: Mapping[str, Any] = field(default_factory=dict)
    unlike: str = ""


VOCABULARIES = {
    "gpt-2": Published(GPT2, "gpt-2"),
    "llama-bpe": Published(
        split_steps(pre.LLAMA3), "llama-bpe", {"model": {"ignore_merges": True}}
    ),
    "qwen2": Published(split_steps(pre.QWEN2), "qwen2", NFC),
    "starcoder": Published(
        {"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, "smollm"
    ),
    "refact": Published(
        {"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, "smollm"
    ),
    "command-r": Published(
        {"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, "smollm", NFC
    ),
    "mpt": Published(GPT2, "gpt-2", NFC),
    "falcon": Published(FALCON, "falcon"),
    "deepseek-llm": Published(
        split_steps(*pre.DEEPSEEK_LLM, pre.DIGIT), "deepseek-llm", unlike="\u3000"
    ),
    "deepseek-coder": Published(split_steps(*pre.DEEPSEEK_CODER), "deepseek-coder"),
    "gemma-4": Published(
        {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "default",
        {
            "normalizer": REPLACE,
            "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
        },
        unlike="\u2581",  # a space to the original, where llama.cpp looks for runs of spaces
    ),
}


def rebuilt(name: str, folder: Path) -> int:
    """Writes the checkpoint's tokenizer files, and gives the size of its vocabulary."""
    gguf = read_gguf(Path(str(FOLDER)) / f"ggml-vocab-{name}.gguf")
    published = VOCABULARIES[name]
    tokens, types = (
        gguf.get("tokenizer.ggml.tokens"),
        gguf.get("tokenizer.ggml.token_type"),
    )
    merges = [list(merge.split(" ", 1)) for merge in gguf.get("tokenizer.ggml.merges")]
    added = [
        {"id": i, "content": text, "special": kind == CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and not text.startswith("[PAD")
    ]
    is_added = {item["content"] for item in added}
    vocab = {
        text: i
        for i, text in enumerate(tokens)
        if text not in is_added and not text.startswith("[PAD")
    }
    vocab |= {
        item["content"]: item["id"] for item in added if published.name == "default"
    }
    root = tokenizer_json(
        vocab, merges, published.pre_tokenizer, added_tokens=added, **published.other
    )
    eos = tokens[gguf.get("tokenizer.ggml.eos_token_id", 11)]
    save(folder, root, tokenizer_config={"eos_token": eos})
    return len(tokens)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_the_original_s(name: str, tmp_path: Path, load: Load) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    size = rebuilt(name, tmp_path)
    vocabulary = read_vocabulary(tmp_path, size)
    assert vocabulary.pre == VOCABULARIES[name].name
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = strings(3000, seed=11)
    if VOCABULARIES[name].other == NFC:
        texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    texts = [text for text in texts if not set(text) & set(VOCABULARIES[name].unlike)]
    assert len(texts) > 2000
    llama = load(vocabulary)
    assert differences(original, llama, texts) == []
    for text, ids in published_ids(name):
        assert llama.encode(text) == ids, text


def published_ids(name: str) -> list[tuple[str, list[int]]]:
    """Texts and their ids in the original tokenizer, as llama.cpp keeps them for its own tests."""
    folder = Path(str(FOLDER))
    if not (folder / f"ggml-vocab-{name}.gguf.inp").exists():
        return []
    texts = (
        (folder / f"ggml-vocab-{name}.gguf.inp")
        .read_bytes()
        .decode()
        .split("\n__ggml_vocab_test__\n")
    )
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    return [
        (text, [int(n) for n in line.split()])
        for text, line in zip(texts, lines, strict=False)
    ]
