"""Tokenizers that a maintainer has at hand: ``GGEXT_TOKENIZERS=FOLDER`` names a folder of them.

Each sub-folder is one test id and holds what a checkpoint has: tokenizer.json, tokenizer.model or
tekken.json, the small files next to it, and a config.json with ``vocab_size``. The originals are the
libraries that these files were made for: `tokenizers`, `sentencepiece` and `tiktoken`; for chat
templates it is `transformers`.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vocabulary import LlamaCpp, alike, strings, vocabulary_only

from ggext.chat.prompt import Prompts
from ggext.chat.transcript import Turn
from ggext.checkpoint.files import CONTROL, USER_DEFINED
from ggext.checkpoint.vocabulary import pretokenizers
from ggext.checkpoint.vocabulary.read import Vocabulary, read_vocabulary
from ggext.checkpoint.vocabulary.spm import is_sentencepiece
from ggext.gguf.open import read_gguf
from ggext.runtime.engine import Model
from ggext.runtime.llama import lib

FOLDER = os.environ.get("GGEXT_TOKENIZERS")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="GGEXT_TOKENIZERS names no folder of tokenizers"
)
FOLDERS = (
    sorted(path for path in Path(FOLDER).iterdir() if path.is_dir())
    if FOLDER
    else [Path("none")]
)

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    config = read(folder, "config.json")
    return read_vocabulary(folder, (config.get("text_config") or config)["vocab_size"])


@pytest.fixture(scope="module")
def llama(
    vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaCpp]:
    opened = LlamaCpp(vocabulary, tmp_path_factory.mktemp("given") / "vocabulary.gguf")
    yield opened
    opened.close()


def read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return json.loads(path.read_bytes()) if path.exists() else {}


def originals(folder: Path, vocabulary: Vocabulary) -> dict[bool, Encode]:
    """The original library's ids, by whether special tokens are parsed; sentencepiece and tekken
    parse none."""
    if (folder / "tokenizer.json").exists():
        tokenizers = pytest.importorskip("tokenizers")
        return {
            parse: with_tokenizers(tokenizers, folder, parse) for parse in (True, False)
        }
    if (folder / "tekken.json").exists():
        return {False: with_tekken(read(folder, "tekken.json"))}
    path = folder / "tokenizer.model"
    if is_sentencepiece(path.read_bytes()):
        return {
            False: pytest.importorskip("sentencepiece")
            .SentencePieceProcessor(str(path))
            .encode
        }
    (expression,) = {
        row.splits[0] for row in pretokenizers.TABLE if row.name == vocabulary.pre
    }
    ranks = {
        base64.b64decode(line.split()[0]): int(line.split()[1])
        for line in path.read_bytes().splitlines()
    }
    special = {
        text: i
        for i, text in enumerate(vocabulary.tokens)
        if vocabulary.token_types[i] == CONTROL
    }
    encoding = with_tiktoken(expression, ranks, special)
    return {
        True: lambda text: encoding.encode(text, allowed_special="all"),
        False: encoding.encode_ordinary,
    }


def with_tokenizers(tokenizers: Any, folder: Path, parse: bool) -> Encode:
    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    original.encode_special_tokens = not parse
    return lambda text: original.encode(text, add_special_tokens=False).ids


def with_tekken(root: dict[str, Any]) -> Encode:
    config = root["config"]
    first = config["default_num_special_tokens"]
    rows = root["vocab"][: config["default_vocab_size"] - first]
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in rows}
    encoding = with_tiktoken(config["pattern"], ranks, {})
    return lambda text: [first + rank for rank in encoding.encode_ordinary(text)]


def with_tiktoken(
    expression: str, ranks: dict[bytes, int], special: dict[str, int]
) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding(
        "given", pat_str=expression, mergeable_ranks=ranks, special_tokens=special
    )


# ids ---------------------------------------------------------------------------------------------


def comparable(vocabulary: Vocabulary, texts: list[str]) -> list[str]:
    """Without the texts of which a note, or docs/llama-cpp.md, says that llama.cpp's ids differ."""
    texts = alike(vocabulary.pre, texts)
    if any("into NFC" in note for note in vocabulary.notes):
        texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    if (
        "   " in vocabulary.tokens
    ):  # runs of spaces that are looked for in the raw text, where U+2581 is none
        texts = [
            text
            for text in texts
            if vocabulary.model != "llama" or "\u2581" not in text
        ]
    return texts


def specials(
    folder: Path, vocabulary: Vocabulary, llama: LlamaCpp, parse: bool
) -> list[str]:
    """Special and added tokens, those that lie furthest apart, that can be compared.

    llama.cpp takes what looks like a token for fill-in-the-middle for a control token, whatever the
    file says, and so do we with the tokens that have a role: in plain text the original still sees
    those that it has as not special.
    """
    added = read(folder, "tokenizer.json").get("added_tokens", [])
    plain = {item["id"] for item in added if not item["special"]}
    odd = {
        item["id"]
        for item in added
        if item["lstrip"] or item["rstrip"] or item["single_word"]
    }
    found = []
    for number, (text, kind) in enumerate(
        zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    ):
        if kind not in (CONTROL, USER_DEFINED) or number in odd:
            continue
        if vocabulary.add_space_prefix and kind == USER_DEFINED:  # a note tells of it
            continue
        if (
            parse
            or number not in plain
            or not llama.lib.llama_vocab_is_control(llama.vocab, number)
        ):
            found.append(text)
    return found[:25] + found[-25:]


def test_ids_are_the_original_s(
    folder: Path,
    vocabulary: Vocabulary,
    llama: LlamaCpp,
    record_property: Callable[[str, object], None],
) -> None:
    for parse, encode in originals(folder, vocabulary).items():
        texts = comparable(
            vocabulary,
            strings(5000, specials(folder, vocabulary, llama, parse), seed=11),
        )
        assert len(texts) > 2000
        record_property(
            f"texts with parse_special={parse}", len(texts)
        )  # --junit-xml writes it
        different = [
            text
            for text in texts
            if encode(text) != llama.encode(text, parse_special=parse)
        ]
        assert sorted(different, key=len)[:5] == []


# around a text -----------------------------------------------------------------------------------


def test_what_is_put_around_a_text(
    folder: Path, vocabulary: Vocabulary, llama: LlamaCpp
) -> None:
    """BOS and EOS as tokenizer_config.json states them, or else as tokenizer.json's own
    post-processor puts them."""
    stated = read(folder, "tokenizer_config.json")
    around = llama.encode("", add_special=True)
    if "add_bos_token" in stated:
        flags = {
            "bos": stated["add_bos_token"],
            "eos": stated.get("add_eos_token", False),
        }
        wanted = [vocabulary.special_ids[role] for role, flag in flags.items() if flag]
    elif (folder / "tokenizer.json").exists():
        wanted = (
            pytest.importorskip("tokenizers")
            .Tokenizer.from_file(str(folder / "tokenizer.json"))
            .encode("")
            .ids
        )
    else:
        wanted = [vocabulary.special_ids["bos"]]
    assert around == wanted
    assert llama.lib.llama_vocab_is_eog(llama.vocab, vocabulary.special_ids["eos"])


TURNS = (
    ("user", "Hello, 12345 \u4f60\u597d!"),
    ("assistant", "Yes?"),
    ("user", "def f(x):\n    return x"),
)


def test_chat_template(folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """The prompt of a chat has the tokens that transformers makes of it."""
    if vocabulary.chat_template is None:
        pytest.skip(f"{folder.name} has no chat template")
    transformers = pytest.importorskip("transformers")
    original = transformers.AutoTokenizer.from_pretrained(str(folder))
    messages = [{"role": role, "content": content} for role, content in TURNS]
    wanted = original.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    path = tmp_path / "vocabulary.gguf"
    LlamaCpp(vocabulary, path).close()
    handle = lib().llama_model_load_from_file(str(path).encode(), vocabulary_only())
    model = Model(path, read_gguf(path), handle, None, 0)
    try:
        assert (
            Prompts(model).tokens([Turn(role, content) for role, content in TURNS])
            == wanted
        )
    finally:
        model.close()
