"""A checkpoint's vocabulary, in the words of GGUF.

``read_vocabulary`` reads tokenizer.model (SentencePiece BPE) or tokenizer.json (byte-level BPE,
or Llama 2's form of it) with the small files next to it, and gives what llama.cpp needs to make
the same token ids. What it cannot make the same is refused, or said in ``Vocabulary.notes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ggext.checkpoint.files import (
    CONTROL,
    MAX_FILE_BYTES,
    MAX_TOKENS,
    NORMAL,
    USER_DEFINED,
    JsonObject,
    Token,
    get,
    quote,
    read_file,
    read_json,
)
from ggext.checkpoint.vocabulary.bpe import add_tokens, read_tokenizer_json
from ggext.checkpoint.vocabulary.duplicates import (
    disagreement,
    json_notes,
    template_notes,
)
from ggext.checkpoint.vocabulary.forms import read_other_form
from ggext.checkpoint.vocabulary.special import (
    SmallFiles,
    add_listed_tokens,
    added_around,
    chat_templates,
    special_ids,
)
from ggext.checkpoint.vocabulary.spm import (
    byte_notes,
    is_sentencepiece,
    read_sentencepiece,
)
from ggext.checkpoint.vocabulary.token_source import TokenSource, strip_notes
from ggext.errors import CheckpointError

_GEMMA4_MARKS = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)
# GGUF spells one of its keys so.
_KEY_NAMES = {"separator": "seperator"}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as a GGUF file holds it; the lists have one entry a token id."""

    model: Literal["llama", "gpt2", "gemma4"]  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre ("default" for SentencePiece)
    tokens: tuple[str, ...]
    scores: tuple[float, ...] | None  # SentencePiece
    token_types: tuple[int, ...]  # gguf.TokenType
    merges: tuple[str, ...] | None  # BPE, "a b"
    special_ids: Mapping[
        str, int
    ]  # bos, eos, unknown, padding, separator, mask, eot, eom
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_template: str | None
    chat_templates: Mapping[str, str] = field(
        default_factory=dict
    )  # the other ones, by name
    notes: tuple[str, ...] = ()  # on which texts llama.cpp's ids differ, one line each

    def metadata(self) -> dict[str, object]:
        """The GGUF keys. A list of int is an int32 array, of float a float32 array."""
        out: dict[str, object] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": list(self.tokens),
        }
        if self.scores is not None:
            out["tokenizer.ggml.scores"] = list(self.scores)
        out["tokenizer.ggml.token_type"] = list(self.token_types)
        if self.merges is not None:
            out["tokenizer.ggml.merges"] = list(self.merges)
        for role, number in self.special_ids.items():
            out[f"tokenizer.ggml.{_KEY_NAMES.get(role, role)}_token_id"] = number
        flags = {
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "add_space_prefix": self.add_space_prefix,
        }
        for key, flag in flags.items():
            if flag is not None:
                out[f"tokenizer.ggml.{key}"] = flag
        return out | self._template_metadata()

    def _template_metadata(self) -> dict[str, object]:
        out: dict[str, object] = {}
        if self.chat_templates:
            out["tokenizer.chat_templates"] = sorted(self.chat_templates)
        for name, text in self.chat_templates.items():
            out[f"tokenizer.chat_template.{name}"] = text
        if self.chat_template is not None:
            out["tokenizer.chat_template"] = self.chat_template
        return out


def read_vocabulary(
    folder: Path, vocab_size: int, *, by_rank: bool = False
) -> Vocabulary:
    """Read a checkpoint folder's tokenizer; ``vocab_size`` is the model's, from config.json.
    ``by_rank``: as in `bpe.read_tokenizer_json`.

    Raises CheckpointError, in one line, for files that are missing, malformed or too large, and
    for a tokenizer that llama.cpp cannot do.
    """
    if not 0 < vocab_size <= MAX_TOKENS:
        raise CheckpointError(
            f"vocab_size is {vocab_size}, expected 1 to {MAX_TOKENS}; correct config.json"
        )
    files = SmallFiles.read(folder)
    root, where = _read_root(folder, files)
    source = _read_source(folder, root, where, files, by_rank=by_rank)
    add_listed_tokens(files, source.table)
    ids, of_ids = special_ids(files, source)
    source.notes += of_ids
    add_bos, add_eos = added_around(files, root, source, ids)
    if source.model == "gemma4":
        _show_marks(source)
        if not add_bos:
            source.notes.append(
                "llama.cpp begins every text with the BOS in a vocabulary of the kind gemma4, "
                "whatever the file says"
            )
    templates = chat_templates(files)
    default = templates.pop("default", None)
    source.notes += template_notes(files, default)
    rows = source.table.padded(vocab_size)
    if source.model == "llama":
        source.notes += _merged_control_notes(rows)
    merges = None if source.merges is None else tuple(source.merges)
    scores = tuple(token.score for token in rows) if source.model == "llama" else None
    return Vocabulary(
        model=source.model,
        pre=source.pre,
        tokens=tuple(token.text for token in rows),
        scores=scores,
        token_types=tuple(token.type for token in rows),
        merges=merges,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=source.add_space_prefix,
        chat_template=default,
        chat_templates=templates,
        notes=tuple(source.notes),
    )


def _show_marks(source: TokenSource) -> None:
    """The marks of reasoning and of tools are part of an answer: control tokens have no text."""
    for text in _GEMMA4_MARKS:
        number = source.table.find(text)
        if number is not None:
            source.table.tokens[number].type = USER_DEFINED


def _merged_control_notes(rows: list[Token]) -> list[str]:
    """Control tokens that llama.cpp's merging forms from plain text; SentencePiece does not."""
    pieces = {token.text for token in rows if token.type == NORMAL}
    controls = [token.text for token in rows if token.type == CONTROL]
    formed = [
        text
        for text in controls
        if any(text[:k] in pieces and text[k:] in pieces for k in range(1, len(text)))
    ]
    if not formed:
        return []
    note = (
        f"llama.cpp merges plain text into {len(formed)} control tokens (first "
        f"{quote(formed[0])}), also where special tokens are not to be parsed"
    )
    return [note]


def _read_source(
    folder: Path,
    root: JsonObject | None,
    where: str,
    files: SmallFiles,
    *,
    by_rank: bool,
) -> TokenSource:
    """tokenizer.model if it is SentencePiece (Llama 3's is not), else ``root``."""
    path = folder / "tokenizer.model"
    data = None if by_rank and root is not None else read_file(path)
    if data is not None and (root is None or is_sentencepiece(data)):
        source = _sentencepiece(data, str(path))
        difference = disagreement(root, source.table) if root is not None else ""
        if root is not None and difference:
            source = read_tokenizer_json(root, where)
            source.notes.append(
                f"tokenizer.json and tokenizer.model differ ({difference}): tokenizer.json is "
                "taken, as transformers does"
            )
        elif root is not None:
            add_tokens(root, source.table, where)
            source.notes += strip_notes(root)
    elif root is not None:
        source = read_tokenizer_json(root, where, by_rank=by_rank)
        source.notes += json_notes(folder, root)
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, tokenizer.model, tekken.json or vocab.json with "
            "merges.txt; save the "
            "tokenizer with save_pretrained() of transformers' fast tokenizer"
        )
    where = str(folder / "tokenizer_config.json")
    source.notes += _set_prefix(source, files.tokenizer_config, where)
    return source


def _read_root(folder: Path, files: SmallFiles) -> tuple[JsonObject | None, str]:
    """tokenizer.json, or what another form says in its words, and what messages call it."""
    path = folder / "tokenizer.json"
    root = read_json(path, MAX_FILE_BYTES)
    if root is not None:
        return root, str(path)
    if is_sentencepiece(read_file(folder / "tokenizer.model") or b""):
        return None, str(path)
    return read_other_form(folder, files.tokenizer_config), str(folder)


def _set_prefix(source: TokenSource, config: JsonObject, where: str) -> list[str]:
    """What tokenizer_config.json says of the space before a text; notes on what GGUF cannot say."""
    stated = get(config, "add_prefix_space", bool, where)
    if source.model != "llama":
        note = "add_prefix_space is set, which llama.cpp's BPE cannot do: left out"
        return [note] if stated else []
    if stated is not None:
        source.add_space_prefix = stated
    if not source.add_space_prefix or get(config, "legacy", bool, where, True):
        return []
    note = (
        "legacy is false: llama.cpp puts a space after a special token within a text, the "
        "original does not"
    )
    return [note]


def _sentencepiece(data: bytes, where: str) -> TokenSource:
    model = read_sentencepiece(data, where)
    source = TokenSource("llama", model.table, roles=model.roles)
    source.add_space_prefix = model.add_dummy_prefix
    source.notes += byte_notes(model.table)
    if model.charsmap:
        source.notes.append(
            "the SentencePiece model normalizes text (precompiled_charsmap), llama.cpp does not: "
            "text in another Unicode form differs"
        )
    if model.remove_extra_whitespaces:
        source.notes.append(
            "the SentencePiece model removes repeated spaces, llama.cpp does not: text with them "
            "differs"
        )
    if model.add_dummy_prefix and any(
        token.type == USER_DEFINED for _, token in model.table
    ):
        source.notes.append(
            "llama.cpp puts a space between a user-defined piece and the text after it, "
            "SentencePiece before a piece "
            "that begins a text"
        )
    return source
