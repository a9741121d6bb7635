"""Special tokens, what is put around a text, and chat templates: read from the small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggext.checkpoint.files import (
    ADDED_SCORE,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    JsonObject,
    TokenTable,
    check_id,
    check_text,
    get,
    quote,
    read_json,
    read_text,
)
from ggext.checkpoint.vocabulary.token_source import TokenSource
from ggext.errors import CheckpointError
from ggext.rope.families import text_part

# Our names (tokenizer.ggml.NAME_token_id) by the names in Hugging Face's files.
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "separator",
    "pad": "padding",
    "mask": "mask",
}

# What ends a turn or a message. llama.cpp looks for these texts itself, but takes the first of a
# hash table's order where a vocabulary has several: we say which one.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "[EOT]")
END_OF_MESSAGE = ("<|eom_id|>",)
# Texts at which llama.cpp stops in any case (llama-vocab.cpp, special_eog_ids).
ALWAYS_STOP = {
    *END_OF_TURN,
    *END_OF_MESSAGE,
    *(
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<|endoftext|>",
        "</s>",
        "_<EOT>",
    ),
    *(
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
    ),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
}


@dataclass(frozen=True)
class SmallFiles:
    """The JSON files next to the vocabulary; a missing one is empty."""

    folder: Path
    tokenizer_config: JsonObject
    special_tokens_map: JsonObject
    added_tokens: JsonObject
    config: JsonObject
    generation_config: JsonObject

    @staticmethod
    def read(folder: Path) -> SmallFiles:
        names = (
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "config.json",
            "generation_config.json",
        )
        return SmallFiles(folder, *(read_json(folder / name) or {} for name in names))


def add_listed_tokens(files: SmallFiles, table: TokenTable) -> None:
    """Tokens that only added_tokens.json or tokenizer_config.json name.

    ``added_tokens_decoder`` of tokenizer_config.json says what is special, and wins.
    """
    for text, number in files.added_tokens.items():
        if table.find(text) is None:
            table.put(number, text, USER_DEFINED, ADDED_SCORE)
    where = str(files.folder / "tokenizer_config.json")
    decoder = get(files.tokenizer_config, "added_tokens_decoder", dict, where, {})
    for key, item in decoder.items():
        if not key.isdecimal() or not isinstance(item, dict):
            raise CheckpointError(
                f"{where}: added_tokens_decoder has the entry {quote(key)}, expected an id and an "
                "object; correct the file"
            )
        table.put_added(int(key[:12]), item)


def special_ids(
    files: SmallFiles, source: TokenSource
) -> tuple[dict[str, int], list[str]]:
    """Ids by role, and notes on what they leave out. A token that is named by its text goes before
    an id, and an id before nothing.

    Raises CheckpointError where there is no end-of-sequence token: llama.cpp would silently
    take the token 11 (BPE) or 2 (SentencePiece) for it.
    """
    ids: dict[str, int] = {}
    notes: list[str] = []
    for hf_name, role in ROLES.items():
        number, of_name = _named(files, source.table, hf_name)
        notes += of_name
        if number is None:
            number = source.roles.get(role)
        if number is None:
            number = _numbered(files, hf_name, source.table)
        if number is not None:
            ids[role] = number
            token = source.table.tokens[number]
            if token.type in (NORMAL, USER_DEFINED):
                token.type = CONTROL
    if "eos" not in ids:
        raise CheckpointError(
            f"{files.folder} names no end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    stops, of_stops = _stops(files, source.table, ids["eos"])
    return ids | stops, notes + of_stops


def _named(
    files: SmallFiles, table: TokenTable, hf_name: str
) -> tuple[int | None, list[str]]:
    """The id of the token that is named by its text, and notes on texts that are no token."""
    notes: list[str] = []
    for name, content in (
        ("tokenizer_config.json", files.tokenizer_config),
        ("special_tokens_map.json", files.special_tokens_map),
    ):
        value = content.get(f"{hf_name}_token")
        text = value.get("content") if isinstance(value, Mapping) else value
        if text is None:
            continue
        where = f"{files.folder / name}: {hf_name}_token"
        number = table.find(check_text(text, where))
        if number is not None:
            return number, notes
        if hf_name in ("bos", "eos"):
            raise CheckpointError(
                f"{where} is {quote(text)}, which is not in the vocabulary; correct the file"
            )
        notes.append(
            f"{hf_name}_token {quote(text)} is not in the vocabulary: left out"
        )
    return None, notes


def _id_list(content: JsonObject, key: str, where: str) -> list[int]:
    value = content.get(key)
    if value is None:
        value = (text_part(content) or {}).get(key)
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [check_id(item, f"{where}: {key}") for item in items if item != -1]


def _all_ids(files: SmallFiles, hf_name: str) -> list[int]:
    key = f"{hf_name}_token_id"
    return _id_list(files.config, key, str(files.folder / "config.json")) + _id_list(
        files.generation_config, key, str(files.folder / "generation_config.json")
    )


def _numbered(files: SmallFiles, hf_name: str, table: TokenTable) -> int | None:
    for number in _all_ids(files, hf_name):
        if number in table.tokens:
            return number
        if hf_name in ("bos", "eos"):
            raise CheckpointError(
                f"{files.folder}: {hf_name}_token_id is {number}, but the vocabulary has no such "
                f"token (it has {len(table.tokens)}); correct config.json"
            )
    return None


def _document_ends(files: SmallFiles, table: TokenTable) -> list[int]:
    """Hunyuan's second end. Its class has the default 3, in most vocabularies an ordinary token."""
    numbers = _id_list(files.config, "eod_token_id", str(files.folder / "config.json"))
    return [n for n in numbers if n in table.tokens and table.tokens[n].type == CONTROL]


def _stops(
    files: SmallFiles, table: TokenTable, eos: int
) -> tuple[dict[str, int], list[str]]:
    """The other ends, and notes on those that have no place: eos_token_id may be a list, and GGUF
    has three places: eos, eot and eom."""
    ids = {"eos": eos}
    notes: list[str] = []
    texts = {token.text: number for number, token in table if token.type != NORMAL}
    for role, names in (("eot", END_OF_TURN), ("eom", END_OF_MESSAGE)):
        number = next((texts[name] for name in names if name in texts), None)
        if number is not None:
            ids[role] = number
    for number in dict.fromkeys(_all_ids(files, "eos") + _document_ends(files, table)):
        token = table.tokens.get(number)
        if token is None or number in ids.values():
            continue
        if token.text in ALWAYS_STOP:
            continue
        free = next((role for role in ("eot", "eom") if role not in ids), None)
        if free:
            ids[free] = number
        else:
            notes.append(
                f"the configuration ends texts at {quote(token.text)} ({number}) too, for which "
                "GGUF has no place left: llama.cpp will not stop at it"
            )
    return ids, notes


# what is put around a text -----------------------------------------------------------------------


def added_around(
    files: SmallFiles, root: JsonObject | None, source: TokenSource, ids: dict[str, int]
) -> tuple[bool, bool]:
    """(add_bos, add_eos): stated in tokenizer_config.json, else what the post_processor does.

    Without either, a SentencePiece tokenizer puts BOS before the text (Llama's default).
    """
    where = str(files.folder / "tokenizer_config.json")
    bos = get(files.tokenizer_config, "add_bos_token", bool, where)
    eos = get(files.tokenizer_config, "add_eos_token", bool, where)
    if root is not None and (bos is None or eos is None):
        first, last = _template(root, source, ids)
        bos = first if bos is None else bos
        eos = last if eos is None else eos
    if bos is None:
        bos = source.model == "llama" and "bos" in ids
    if bos and "bos" not in ids:
        raise CheckpointError(
            f"{where} has add_bos_token but there is no bos_token, on which llama.cpp aborts; name "
            "it or set add_bos_token to false"
        )
    return bos, bool(eos)


def _template(
    root: JsonObject, source: TokenSource, ids: dict[str, int]
) -> tuple[bool, bool]:
    """What the post_processor adds. A BOS that only it names becomes the vocabulary's."""
    where = source.table.where
    node = get(root, "post_processor", dict, where, {})
    nodes = (
        get(node, "processors", list, where, [])
        if node.get("type") == "Sequence"
        else [node]
    )
    before: list[str] = []
    after: list[str] = []
    for step in nodes:
        if not isinstance(step, dict) or step.get("type") in (None, "ByteLevel"):
            continue
        if step.get("type") != "TemplateProcessing":
            raise CheckpointError(
                f"{where}: the post_processor {quote(str(step.get('type')))} has no equal in "
                "llama.cpp; set add_bos_token and add_eos_token in tokenizer_config.json"
            )
        before, after = _around(step, where)
    for names, role in ((before, "bos"), (after, "eos")):
        added_ids = [source.table.find(name) for name in names]
        if len(added_ids) == 1 and added_ids[0] is not None:
            ids.setdefault(role, added_ids[0])
        if names and added_ids != [ids.get(role)]:
            raise CheckpointError(
                f"{where}: the post_processor adds {quote(' '.join(names))} where llama.cpp can "
                f"only add the {role}_token; set add_{role}_token in tokenizer_config.json"
            )
    return bool(before), bool(after)


def _around(step: JsonObject, where: str) -> tuple[list[str], list[str]]:
    before: list[str] = []
    after: list[str] = []
    here = before
    for item in get(step, "single", list, where, []):
        if isinstance(item, dict) and "Sequence" in item:
            here = after
            continue
        special = item.get("SpecialToken") if isinstance(item, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        here.append(check_text(name, f"{where}: a token of the post_processor"))
    return before, after


# chat templates ----------------------------------------------------------------------------------


def chat_templates(files: SmallFiles) -> dict[str, str]:
    """Templates by name, the main one as "default": as in transformers, .jinja files go before
    tokenizer_config.json, and that before a processor's chat_template.json."""
    folder = files.folder
    main = read_text(folder / "chat_template.jinja")
    templates = {} if main is None else {"default": main}
    for name in ("additional_chat_templates", "chat_templates"):
        for path in sorted((folder / name).glob("*.jinja"))[:100]:
            templates.setdefault(_template_name(path.stem), read_text(path) or "")
    if not templates:
        templates = _config_templates(files)
    old = None if "default" in templates else read_json(folder / "chat_template.json")
    main = (
        get(old, "chat_template", str, str(folder / "chat_template.json"))
        if old
        else None
    )
    if main is not None:
        templates["default"] = main
    return {
        name: check_text(text, f"{folder}: the chat template")
        for name, text in templates.items()
    }


def _config_templates(files: SmallFiles) -> dict[str, str]:
    value = files.tokenizer_config.get("chat_template")
    where = str(files.folder / "tokenizer_config.json")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    result = {}
    for item in value if isinstance(value, list) else [None]:
        if not isinstance(item, dict):
            raise CheckpointError(
                f"{where}: chat_template is a {type(value).__name__}, expected a text or a list of "
                "named templates; correct the file"
            )
        name = get(item, "name", str, where, "")
        text = get(item, "template", str, where)
        if name and text is not None:
            result[_template_name(name)] = text
    return result


def _template_name(name: str) -> str:
    """A name that can stand in a GGUF key, as the gguf package writes it."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
