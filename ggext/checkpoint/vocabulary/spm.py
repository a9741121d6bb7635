"""SentencePiece models (``tokenizer.model``): a bounds-checked reader of the few fields we need.

The file is a protocol-buffer message, ``ModelProto`` of sentencepiece_model.proto. Reading it
here needs neither the sentencepiece nor the protobuf package, and a hostile file meets Python,
not C++. Field numbers are those of the .proto file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ggext.checkpoint.files import (
    BYTE,
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    TokenTable,
)
from ggext.errors import CheckpointError

_BPE, _CHARACTER = 2, 4
MODEL_TYPES = {1: "Unigram", _BPE: "BPE", 3: "word", _CHARACTER: "character"}

# ModelProto
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
# SentencePiece
_TEXT, _SCORE, _TYPE = 1, 2, 3
# TrainerSpec
_MODEL_TYPE, _SUFFIX, _BOS, _EOS, _PAD = 3, 24, 46, 47, 48
# NormalizerSpec
_CHARSMAP, _PREFIX, _EXTRA_SPACES, _ESCAPE = 2, 3, 4, 5

# What stands before them in a file: number and wire type.
_TAG_PIECE, _TAG_TEXT, _TAG_SCORE, _TAG_TYPE = 0x0A, 0x0A, 0x15, 0x18
_FLOAT = struct.Struct("<f")

Value = int | bytes


class WireError(ValueError):
    """The bytes are not a protocol-buffer message."""


@dataclass
class SentencePieceModel:
    """What a ``tokenizer.model`` says. The defaults are those of the .proto file."""

    table: TokenTable
    model_type: int = 1
    whitespace_as_suffix: bool = False
    charsmap: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    roles: dict[str, int] = field(default_factory=dict)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if (
        at < len(data) and data[at] < 0x80
    ):  # nearly all of them: 32,000 pieces have 160,000
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise WireError("a number has more than 10 bytes")


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of a message: int for varints, bytes for all others."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number = key >> 3
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise WireError(f"wire type {wire} is unknown")
        if number == 0 or size > len(data) - at:
            raise WireError(f"field {number} with {size} bytes passes the end")
        yield number, wire, data[at : at + size]
        at += size


def _last(data: bytes) -> dict[tuple[int, int], Value]:
    """The fields of a message by (number, wire type); the last one of each wins."""
    return {(number, wire): value for number, wire, value in fields(data)}


def _text(value: Value | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else None
    except UnicodeDecodeError as error:
        raise WireError("a piece is not UTF-8") from error


def _piece(data: bytes) -> tuple[str, int, float]:
    message = _last(data)
    raw = message.get((_SCORE, 5), b"\0\0\0\0")
    (score,) = _FLOAT.unpack(raw) if isinstance(raw, bytes) else (math.nan,)
    kind = message.get((_TYPE, 0), 1)
    if not isinstance(kind, int) or not 1 <= kind <= BYTE:
        raise WireError(f"a piece has the type {kind!r}")
    return _text(message.get((_TEXT, 2))) or "", kind, float(score)


def _usual_pieces(data: bytes) -> tuple[list[tuple[str, int, float]], int]:
    """The pieces that a file begins with, as far as they are written as SentencePiece itself writes
    them, and where they end; four times as fast as field by field. Such a piece has fewer than 128
    bytes: its text, its score, and its type unless that is NORMAL."""
    pieces: list[tuple[str, int, float]] = []
    at = 0
    try:
        while (
            len(pieces) < MAX_TOKENS
            and data[at] == _TAG_PIECE
            and data[at + 2] == _TAG_TEXT
            and data[at + 1] < 0x80
        ):
            score_at = at + 4 + data[at + 3]
            end = at + 2 + data[at + 1]
            if data[score_at] != _TAG_SCORE:
                break
            if end == score_at + 5:
                kind = NORMAL
            elif (
                end == score_at + 7
                and data[score_at + 5] == _TAG_TYPE
                and NORMAL <= data[score_at + 6] <= BYTE
            ):
                kind = data[score_at + 6]
            else:
                break
            pieces.append(
                (
                    _text(data[at + 4 : score_at]) or "",
                    kind,
                    _FLOAT.unpack_from(data, score_at + 1)[0],
                )
            )
            at = end
    except (
        IndexError,
        struct.error,
    ):  # the file ends within a piece: what is wrong with it is said elsewhere
        pass
    return pieces, at


def _read_messages(data: bytes, where: str) -> SentencePieceModel:
    model = SentencePieceModel(TokenTable(where, escapes_spaces=True))
    trainer: dict[tuple[int, int], Value] = {}
    normalizer: dict[tuple[int, int], Value] = {}
    pieces, end = _usual_pieces(data)
    for number, wire, value in fields(data[end:]):
        if wire != 2 or not isinstance(value, bytes):
            continue
        if number == _PIECES:
            if len(pieces) >= MAX_TOKENS:
                raise WireError(f"it has more than {MAX_TOKENS} pieces")
            pieces.append(_piece(value))
        elif number == _TRAINER:
            trainer.update(_last(value))
        elif number == _NORMALIZER:
            normalizer.update(_last(value))
    for i, (text, kind, score) in enumerate(pieces):
        if not math.isfinite(score):
            raise WireError("a piece's score is not a finite number")
        # A user-defined piece is matched in the raw text, before spaces become U+2581.
        piece = text.replace("\u2581", " ") if kind == USER_DEFINED else text
        model.table.put(
            i,
            piece,
            kind,
            score,
        )
    _set_trainer(model, trainer)
    model.charsmap = bool(normalizer.get((_CHARSMAP, 2)))
    model.add_dummy_prefix = bool(normalizer.get((_PREFIX, 0), 1))
    model.remove_extra_whitespaces = bool(normalizer.get((_EXTRA_SPACES, 0), 1))
    model.escape_whitespaces = bool(normalizer.get((_ESCAPE, 0), 1))
    return model


def _set_trainer(
    model: SentencePieceModel, trainer: dict[tuple[int, int], Value]
) -> None:
    kind = trainer.get((_MODEL_TYPE, 0), 1)
    model.model_type = kind if isinstance(kind, int) else 0
    model.whitespace_as_suffix = bool(trainer.get((_SUFFIX, 0), 0))
    names = {"bos": (_BOS, "<s>"), "eos": (_EOS, "</s>"), "padding": (_PAD, "<pad>")}
    controls = {token.text: i for i, token in model.table if token.type == CONTROL}
    for role, (number, default) in names.items():
        piece = _text(trainer.get((number, 2))) or default
        if piece in controls:
            model.roles[role] = controls[piece]
    for i, token in model.table:
        if token.type == UNKNOWN:
            model.roles.setdefault("unknown", i)


def is_sentencepiece(data: bytes) -> bool:
    """Whether the file begins as a SentencePiece model does (Llama 3's is a list of ranks)."""
    try:
        number, wire, value = next(fields(data))
        return (
            number == _PIECES
            and wire == 2
            and isinstance(value, bytes)
            and bool(_last(value))
        )
    except (WireError, StopIteration):
        return False


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Read a ``tokenizer.model``; refuses what llama.cpp's "llama" tokenizer does not do.

    Raises CheckpointError for bytes that are no such model, and for Unigram and word models.
    """
    try:
        model = _read_messages(data, where)
    except WireError as error:
        raise CheckpointError(
            f"{where} is not a SentencePiece model: {error}; download the checkpoint again"
        ) from error
    if not model.table.tokens:
        raise CheckpointError(f"{where} holds no pieces; download the checkpoint again")
    if model.model_type != _BPE and not _is_by_character(model):
        name = MODEL_TYPES.get(model.model_type, f"type {model.model_type}")
        raise CheckpointError(
            f"{where} is a SentencePiece {name} model, and llama.cpp's tokenizer for Llama merges "
            "as BPE does: its token ids would differ; only BPE and character models can be "
            "converted"
        )
    for wrong, flag in (
        (model.whitespace_as_suffix, "treat_whitespace_as_suffix"),
        (not model.escape_whitespaces, "escape_whitespaces=false"),
    ):
        if wrong:
            raise CheckpointError(
                f"{where} has {flag}, which llama.cpp's tokenizer cannot do"
            )
    return model


def _is_by_character(model: SentencePieceModel) -> bool:
    """Whether every text falls into its characters, of which no merging makes anything."""
    plain = (token.text for _, token in model.table if token.type == NORMAL)
    return model.model_type == _CHARACTER and all(len(text) == 1 for text in plain)


def byte_notes(table: TokenTable) -> list[str]:
    """A line for a vocabulary that lacks one of ``<0x00>`` ... ``<0xFF>`` as a byte token."""
    present = {token.text for _, token in table if token.type == BYTE}
    missing = [
        f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in present
    ]
    if not missing:
        return []
    note = (
        f"the vocabulary lacks {len(missing)} of the 256 byte tokens: for characters that no piece "
        "has ggext takes the unknown token, as the original does; other llama.cpp programs end at "
        "such a character"
    )
    return [note]
