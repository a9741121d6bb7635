"""Files of one folder that disagree on its vocabulary: transformers' order, and a note that names
what is not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggext.checkpoint.files import (
    MAX_FILE_BYTES,
    NORMAL,
    JsonObject,
    TokenTable,
    quote,
    read_json,
)
from ggext.checkpoint.vocabulary.pretokenizers import BYTES, SAME, steps_of
from ggext.checkpoint.vocabulary.special import SmallFiles
from ggext.errors import CheckpointError


def disagreement(root: JsonObject, table: TokenTable) -> str:
    """Where a tokenizer.json's BPE has other pieces than ``table``, of a tokenizer.model; empty
    where it has the same, or is no BPE."""
    vocab = _vocabulary(root)
    if not vocab:
        return ""
    added = {
        item.get("content")
        for item in root.get("added_tokens") or ()
        if isinstance(item, Mapping)
    }
    for text, number in vocab.items():
        token = table.tokens.get(number) if isinstance(number, int) else None
        if token is None:
            if text not in added:
                return f"{quote(text, 40)} has the id {number} in tokenizer.json alone"
        elif token.type == NORMAL and token.text != text:
            return (
                f"the id {number} is {quote(text, 40)} in tokenizer.json and "
                f"{quote(token.text, 40)} in tokenizer.model"
            )
    return ""


def json_notes(folder: Path, root: JsonObject) -> list[str]:
    """A line for each file next to a tokenizer.json that says something else and is not read."""
    return _tekken_notes(folder, root) + _vocab_notes(folder, root)


def template_notes(files: SmallFiles, taken: str | None) -> list[str]:
    """A line where a chat template that is not ``taken`` is another one."""
    others: dict[str, Any] = {
        "tokenizer_config.json": files.tokenizer_config.get("chat_template"),
        "chat_template.json": (
            read_json(files.folder / "chat_template.json") or {}
        ).get("chat_template"),
    }
    other = [
        name
        for name, text in others.items()
        if isinstance(text, str) and taken is not None and text.strip() != taken.strip()
    ]
    if not other:
        return []
    note = (
        f"the chat template of {', '.join(other)} is another one and not read: transformers takes "
        "chat_template.jinja before tokenizer_config.json before chat_template.json"
    )
    return [note]


def _vocabulary(root: JsonObject) -> Mapping[str, Any]:
    model = root.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    return vocab if isinstance(vocab, Mapping) else {}


def _tekken_notes(folder: Path, root: JsonObject) -> list[str]:
    tekken = _quietly(folder / "tekken.json")
    config = tekken.get("config")
    pattern = config.get("pattern") if isinstance(config, Mapping) else None
    if not isinstance(pattern, str):
        return []
    try:
        steps = steps_of(root.get("pre_tokenizer"), "tokenizer.json")
    except CheckpointError:
        return []
    if steps == (SAME.get(pattern, pattern), BYTES):
        return []
    note = (
        "tekken.json splits text by another expression than tokenizer.json, which is taken, as "
        "transformers does without mistral-common: remove tokenizer.json to take tekken.json"
    )
    return [note]


def _vocab_notes(folder: Path, root: JsonObject) -> list[str]:
    vocab = _quietly(folder / "vocab.json")
    inner = _vocabulary(root)
    differs = any(inner.get(text, number) != number for text, number in vocab.items())
    if not vocab or not inner or not differs:
        return []
    note = (
        "vocab.json gives tokens other ids than tokenizer.json, which is taken, as transformers "
        "does; vocab.json is not read"
    )
    return [note]


def _quietly(path: Path) -> JsonObject:
    """What a file that is not taken says; nothing where it cannot be read."""
    try:
        return read_json(path, MAX_FILE_BYTES) or {}
    except CheckpointError:
        return {}
