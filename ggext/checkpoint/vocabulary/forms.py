"""Vocabularies without a tokenizer.json, brought to its form: Mistral's tekken.json, tiktoken
ranks, and GPT-2's pair of vocab.json and merges.txt.

What splits the text into words is taken from where the checkpoint says it: tekken.json holds the
expression; ranks come with the Python file that holds it (which is searched, never run), or are a
file that is known; vocab.json comes with the tokenizer's class. Where none of them says it, the
vocabulary is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggext.checkpoint.files import (
    MAX_FILE_BYTES,
    MAX_TOKEN_LENGTH,
    MAX_TOKENS,
    JsonObject,
    get,
    quote,
    read_file,
    read_json,
    read_text,
)
from ggext.checkpoint.vocabulary.byte_level import symbols_of
from ggext.checkpoint.vocabulary.pretokenizers import (
    GPT2,
    KIMI,
    KIMI_ALTERNATIVES,
    LLAMA3,
    QWEN2,
)
from ggext.errors import CheckpointError

#: Files of ranks, in the order of preference.
_RANK_FILES = ("tiktoken.model", "tokenizer.model", "*.tiktoken")
_FIRST_RANK = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")
#: SHA-256 of a file of ranks → (expression, the token that its text begins with), published
#: elsewhere: Meta's Llama 3.
_KNOWN_RANKS = {
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": (
        LLAMA3,
        "<|begin_of_text|>",
    ),
}
#: Expressions to look for in the Python files, as the strings that they are written in.
_IN_PYTHON = {KIMI: KIMI_ALTERNATIVES, QWEN2: (QWEN2,), LLAMA3: (LLAMA3,)}
#: tokenizer_class → (expression, normalizer) that its code in transformers has.
_CLASSES = {
    "GPT2Tokenizer": (GPT2, None),
    "CodeGenTokenizer": (GPT2, None),
    "Qwen2Tokenizer": (QWEN2, {"type": "NFC"}),
}


def read_other_form(folder: Path, tokenizer_config: JsonObject) -> JsonObject | None:
    """The vocabulary as a tokenizer.json would say it, or None where there is no file of these
    forms."""
    tekken = read_json(folder / "tekken.json", MAX_FILE_BYTES)
    if tekken is not None:
        return _tekken(tekken, str(folder / "tekken.json"))
    for name in _RANK_FILES:
        for path in sorted(folder.glob(name)):
            data = read_file(path)
            if data is not None and _FIRST_RANK.match(data):
                return _tiktoken(folder, path, data)
    vocab = read_json(folder / "vocab.json", MAX_FILE_BYTES)
    merges = read_text(folder / "merges.txt", MAX_FILE_BYTES)
    if vocab is not None and merges is not None:
        return _gpt2(folder, vocab, merges, tokenizer_config)
    return None


def _root(
    vocab: JsonObject,
    merges: list[Any],
    expression: str,
    *,
    ignore_merges: bool,
    added: list[JsonObject] | None = None,
) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [
        split,
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": False,
            "trim_offsets": True,
        },
    ]
    return {
        "version": "1.0",
        "added_tokens": added or [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "ignore_merges": ignore_merges,
        },
    }


# ranks: tiktoken merges the pair that forms the token of the lowest rank, and leaves a word that is
# a token whole ----


def _from_ranks(
    ranks: dict[bytes, int], first_id: int, expression: str, added: list[JsonObject]
) -> dict[str, Any]:
    vocab = {symbols_of(token): first_id + rank for token, rank in ranks.items()}
    return _root(
        vocab, list(_merges(vocab)), expression, ignore_merges=True, added=added
    )


def _beginning(token: str) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"post_processor": {"type": "TemplateProcessing", "single": single}}


def _merges(ranks: dict[str, int]) -> Iterator[list[str]]:
    """Every way to cut a token into two, in the order of its rank, then of the left part's and the
    right part's."""
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [
            (ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks
        ]
        yield from ([a, b] for _, _, a, b in sorted(pairs))


def _decoded(text: object, where: str) -> bytes:
    try:
        token = base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error):
        raise CheckpointError(
            f"{where}: the token {quote(repr(text))} is not base64; download it again"
        ) from None
    if not 0 < len(token) <= MAX_TOKEN_LENGTH:
        raise CheckpointError(
            f"{where}: a token has {len(token)} bytes, expected 1 to {MAX_TOKEN_LENGTH}"
        )
    return token


def _ranks(rows: Iterator[tuple[object, int]], where: str) -> dict[bytes, int]:
    """Tokens by rank: 0, 1, 2 … without a hole, each token once, all single bytes among them."""
    ranks: dict[bytes, int] = {}
    for number, (text, rank) in enumerate(rows):
        token = _decoded(text, where)
        if number >= MAX_TOKENS or rank != number or token in ranks:
            raise CheckpointError(
                f"{where}: rank {number} is {quote(str(rank))} for the token {quote(repr(token))}, "
                "which is out of "
                "order or there twice; download it again"
            )
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{where}: the byte {missing[0]:#04x} has no token; download it again"
        )
    return ranks


# tekken.json -------------------------------------------------------------------------------------


def _tekken(root: JsonObject, where: str) -> dict[str, Any]:
    config = get(root, "config", dict, where, {})
    expression = get(config, "pattern", str, where, "")
    size, n_special = (
        get(config, f"default_{key}", int, where, 0)
        for key in ("vocab_size", "num_special_tokens")
    )
    rows = get(root, "vocab", list, where, [])
    if not 0 < n_special < size <= n_special + len(rows):
        raise CheckpointError(
            f"{where}: {size} tokens, {n_special} of them special, cannot be made of {len(rows)}; "
            "download it again"
        )
    items = (
        (get(_object(row, where), "token_bytes", str, where), row.get("rank"))
        for row in rows[: size - n_special]
    )
    added = _tekken_specials(root, n_special, where)
    ranks = _ranks(items, where)
    return _from_ranks(ranks, n_special, expression, added) | _beginning("<s>")


def _object(item: object, where: str) -> JsonObject:
    if not isinstance(item, dict):
        raise CheckpointError(
            f"{where}: {quote(repr(item))} is no object; download it again"
        )
    return item


#: The special tokens of the first tekken.json files, which do not list them.
_FIRST_SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)


def _tekken_specials(root: JsonObject, count: int, where: str) -> list[JsonObject]:
    """The special tokens have the first ids; those that are not named are called <SPECIAL_n>."""
    listed = get(root, "special_tokens", list, where)
    names: dict[int, object] = dict(enumerate(_FIRST_SPECIALS[:count]))
    if listed is not None:
        names = {
            get(_object(item, where), "rank", int, where, -1): item.get("token_str")
            for item in listed
        }
    if any(not 0 <= rank < count for rank in names):
        raise CheckpointError(
            f"{where}: a special token has a rank outside 0 to {count - 1}; download it again"
        )
    return [
        {"id": i, "content": names.get(i, f"<SPECIAL_{i}>"), "special": True}
        for i in range(count)
    ]


# files of ranks ----------------------------------------------------------------------------------


def _tiktoken(folder: Path, path: Path, data: bytes) -> dict[str, Any]:
    known, begin = _KNOWN_RANKS.get(hashlib.sha256(data).hexdigest(), (None, None))
    expression = known or _expression_in_python(folder)
    if expression is None:
        raise CheckpointError(
            f"{path} is a list of tiktoken ranks, which says nothing of words, and no Python file "
            "next to it holds an "
            "expression that ggext knows; put the tokenizer.json of the Hugging Face release "
            "next to it"
        )
    lines = (line.split() for line in data.splitlines() if line.strip())
    root = _from_ranks(_ranks(map(_line, lines), str(path)), 0, expression, [])
    return root | _beginning(begin) if begin else root


def _line(parts: list[bytes]) -> tuple[object, int]:
    if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
        return parts[0] if parts else b"", -1
    return parts[0], int(parts[1])


def _expression_in_python(folder: Path) -> str | None:
    """The one expression that the tokenizer's Python files hold; the files are searched as text."""
    texts = [
        read_text(path) or "" for path in sorted(folder.glob("tokenization_*.py"))[:10]
    ]
    names = {
        whole
        for whole, strings in _IN_PYTHON.items()
        for text in texts
        if _holds(text, strings)
    }
    return names.pop() if len(names) == 1 else None


def _holds(text: str, strings: tuple[str, ...]) -> bool:
    """Whether the strings are there, in this order, each between quotation marks."""
    at = 0
    for string in strings:
        at = text.find(f'"{string}"', at)
        if at < 0:
            return False
    return True


# vocab.json and merges.txt -----------------------------------------------------------------------


def _gpt2(
    folder: Path, vocab: JsonObject, merges: str, tokenizer_config: JsonObject
) -> dict[str, Any]:
    where = str(folder / "tokenizer_config.json")
    name = get(tokenizer_config, "tokenizer_class", str, where, "").removesuffix("Fast")
    if name not in _CLASSES:
        raise CheckpointError(
            f"{folder} has vocab.json and merges.txt, which say nothing of words, and {where} has "
            "the tokenizer_class "
            f"{quote(name)} (known: {', '.join(_CLASSES)}); save the tokenizer with transformers' "
            "save_pretrained()"
        )
    expression, normalizer = _CLASSES[name]
    lines = merges.split("\n")
    pairs = [
        line for line in lines[1 if lines[0].startswith("#version") else 0 :] if line
    ]
    return _root(vocab, pairs, expression, ignore_merges=False) | {
        "normalizer": normalizer
    }
