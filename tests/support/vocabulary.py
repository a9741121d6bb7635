"""What the tests of vocabularies share: awkward strings, llama.cpp's tokenizer, tokenizer.json
files."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import pytest

from ggext.checkpoint.files import NORMAL
from ggext.checkpoint.vocabulary.read import Vocabulary
from ggext.runtime.llama import lib

ATOMS = (
    *(
        "the",
        "Hello",
        " world",
        "'s",
        "'LL",
        "don't",
        "I'M",
        "a",
        "B",
        "camelCase",
        "HTTPServer",
    ),
    *(
        "\xe9",
        "\xc9",
        "\xdf",
        "Stra\xdfe",
        "\u0416",
        "\u0436",
        "\xc0B",
        "\u01c5",
        "\xaa",
    ),
    *("\u65e5\u672c\u8a9e", "\u304b\u306a", "\u30ab\u30ca", "\ud55c\uad6d\uc5b4"),
    *("\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940"),
    *(
        "\u0627\u0644\u0639\u064e\u0631",
        "\u05e2\u05d1",
        "e\u0301",
        "n\u0303o",
        "\u0301",
    ),
    *("\u20dd", "\U0001f642", "\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7"),
    *(
        "\u2764\ufe0f",
        "\xbd",
        "\xb2",
        "\u2167",
        "\u0663",
        "\uff11",
        "\U0001d7d8",
        "\U00010400",
    ),
    *(
        "0",
        "1",
        "12",
        "123",
        "1234",
        "12345",
        "3.14",
        "1,000",
        "0xFF",
        " ",
        "  ",
        "   ",
    ),
    *(
        "        ",
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        " \n",
        "\n ",
        "\x0b",
        "\xa0",
    ),
    *(
        "\u3000",
        "\x85",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x1c",
        "\x7f",
        "\u180e",
        "!",
        "?!",
        "...",
    ),
    *(
        "--",
        "\u2014",
        "\u201cq\u201d",
        "$",
        "\u20ac",
        "+",
        "==",
        "->",
        "</",
        "()",
        "[]",
        "{}",
    ),
    *("`", "~", "^", "|", "\\", "//", "#include", "_", "snake_case", "x=1;", "\u3002"),
    *(
        "def f(x):\n    return x\n",
        "if (a<b) {\n\treturn;\n}\n",
        "\u2581",
        "\u2581\u2581",
    ),
    *(
        "\u0120",
        "<0x0A>",
        "[PAD3]",
        "aaaaaaa",
        "=====",
        "\ud7ff",
        "\ue000",
        "\U0010ffff",
    ),
    *("\u2019s", "\uff01"),
)


def strings(count: int, specials: Iterable[str] = (), seed: int = 1) -> list[str]:
    """Awkward texts: every atom alone, then random runs of atoms and of characters.

    The random characters are of Unicode 3.2, because llama.cpp's tables are older than those of
    `tokenizers`: some 4,400 letters and marks of Unicode 15.1 and 16 are no letters to llama.cpp.
    """
    source = random.Random(seed)
    atoms = [*ATOMS, *list(specials) * 3]
    texts = ["", *atoms]
    known = [
        chr(c)
        for c in range(1, 0xD800)
        if unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"
    ]
    known.remove("\u017f")  # long s: an s in (?i:'s) to `tokenizers`, not to llama.cpp
    while len(texts) < count:
        parts = (
            source.choice(atoms) if source.random() < 0.85 else source.choice(known)
            for _ in range(source.choice((1, 2, 2, 3, 4, 6, 10, 20)))
        )
        texts.append("".join(parts))
    return texts


def alike(name: str, texts: Iterable[str]) -> list[str]:
    """The texts on which llama.cpp's expression of this name is the original one, as the row's
    notes say.

    tekken, gpt-4o, kimi-k2 and granite-embed-multi-97m have no case for non-ASCII letters; the
    first three leave combining marks out, and kimi-k2 leaves camelCase whole. deepseek-llm and
    deepseek-coder: white space beyond ASCII.
    """
    if name in {"deepseek-llm", "deepseek-coder"}:
        return [text for text in texts if all(c.isascii() for c in text if c.isspace())]
    if name in {"tekken", "gpt-4o", "kimi-k2"}:
        texts = [
            text
            for text in texts
            if not any(unicodedata.category(c)[0] == "M" for c in text)
        ]
    if name in {"tekken", "gpt-4o", "kimi-k2", "granite-embed-multi-97m"}:
        cased = {"Lu", "Ll", "Lt"}
        texts = [
            text
            for text in texts
            if all(c.isascii() or unicodedata.category(c) not in cased for c in text)
        ]
    return [
        text
        for text in texts
        if name != "kimi-k2" or not re.search("[a-z][A-Z]|\u02ca", text)
    ]


class LlamaCpp:
    """llama.cpp's tokenizer, of a vocabulary-only GGUF file."""

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        pytest.importorskip("llama_cpp")
        self.lib = lib()
        write_gguf(vocabulary, path)
        self.model = self.lib.llama_model_load_from_file(
            str(path).encode(), vocabulary_only()
        )
        assert self.model, "llama.cpp refused the vocabulary"
        self.vocab = self.lib.llama_model_get_vocab(self.model)

    def encode(
        self, text: str, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (self.lib.llama_token * room)()
        args = (self.vocab, data, len(data), ids, room, add_special, parse_special)
        count = self.lib.llama_tokenize(*args)
        assert count >= 0
        return list(ids[:count])

    def close(self) -> None:
        self.lib.llama_model_free(self.model)


def vocabulary_only() -> Any:
    params = lib().llama_model_default_params()
    params.vocab_only = True
    return params


def write_gguf(vocabulary: Vocabulary, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key in (
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
    ):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_uint32("llama.context_length", 64)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for key, value in vocabulary.metadata().items():
        adders.get(type(value), writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def differences(original: Any, llama: LlamaCpp, texts: Iterable[str]) -> list[str]:
    """Texts with other ids in llama.cpp than in `tokenizers`, special tokens parsed or as text."""
    found = []
    for parse in (True, False):
        original.encode_special_tokens = not parse
        for text in texts:
            ids = original.encode(text, add_special_tokens=False).ids
            if ids != llama.encode(text, parse_special=parse):
                found.append(text)
    return sorted(found, key=len)[:5]


# tokenizer.json files that the tests build ------------------------------------------------------

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
EOS = "<|end|>"


def split_steps(*regexes: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": r},
            "behavior": "Isolated",
            "invert": False,
        }
        for r in regexes
    ]
    return {
        "type": "Sequence",
        "pretokenizers": [*steps, BYTE_LEVEL | {"use_regex": False}],
    }


def added(first: int, *texts: str, special: bool = True) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": first + i, "content": t, "special": special, **flags}
        for i, t in enumerate(texts)
    ]


def tokenizer_json(
    vocab: dict[str, int], merges: list[list[str]], pre_tokenizer: object, **other: Any
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    root = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(len(vocab), EOS),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
    }
    model |= other.pop("model", {})
    return root | other | {"model": model}


def save(folder: Path, root: object, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    contents = {"tokenizer.json": root, "tokenizer_config.json": {"eos_token": EOS}}
    contents |= {f"{name}.json": content for name, content in files.items()}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


Load = Callable[[Vocabulary], LlamaCpp]


def train_sentencepiece(folder: Path, **options: Any) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [" ".join(ATOMS[i : i + 12]).replace("\n", " ") for i in range(len(ATOMS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **{"vocab_size": 500, "byte_fallback": True, "model_type": "bpe"}
        | {"hard_vocab_limit": False, "normalization_rule_name": "identity"}
        | options,
    )
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


def llama2_json(vocabulary: Vocabulary, **steps: Any) -> dict[str, Any]:
    """Llama 2's tokenizer.json, made from its SentencePiece model as transformers makes it."""
    assert vocabulary.scores is not None
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    scores = vocabulary.scores
    merges: list[list[str]] = []
    for number in sorted(range(len(ids)), key=lambda i: -scores[i]):
        text = vocabulary.tokens[number]
        if vocabulary.token_types[number] == NORMAL:
            cuts = [(text[:k], text[k:]) for k in range(1, len(text))]
            pairs = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
            merges += [[a, b] for _, _, a, b in sorted(pairs)]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return tokenizer_json(
        ids,
        merges,
        steps.get("pre_tokenizer"),
        normalizer=steps.get("normalizer"),
        added_tokens=added(0, "<unk>", "<s>", "</s>"),
        post_processor=template,
        model={"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
    )
