"""Bounded reading of a checkpoint's tokenizer files, and the table of tokens they fill.

Everything here comes from strangers: each size is limited, each JSON type is checked, and what
llama.cpp would abort on (a duplicate or empty token, text that is not UTF-8) is refused by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from ggext.errors import CheckpointError
from ggext.gguf.plain_files import open_plain

# tokenizer.ggml.token_type: the numbers are GGUF's, and SentencePiece's own.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

#: The largest published tokenizer.json has 33 MB (Gemma 3).
MAX_FILE_BYTES = 128 << 20
MAX_SMALL_FILE_BYTES = 16 << 20  # configurations and chat templates
MAX_TOKEN_LENGTH = 1024  # characters; published vocabularies stay below 600
#: The largest published vocabulary has about 2**18 entries.
MAX_TOKENS = 1 << 22

_MAX_LINKS = 40  # as the system follows

#: Never compared by a merge: added tokens are split off before.
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0

T = TypeVar("T")
JsonObject = Mapping[str, Any]


def quote(text: str, limit: int = 80) -> str:
    """``text`` as one printable line of at most ``limit`` characters, for an error message."""
    shown = ascii(text)
    return shown if len(shown) <= limit else shown[: limit - 4] + "...'"


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes | None:
    """The bytes of a regular file, or None where there is none; never more than ``limit``."""
    try:
        if not path.is_file():
            return None
        check_link(path)
        with os.fdopen(open_plain(path), "rb") as stream:
            # read() allocates all that it is asked for, so not the limit itself
            data = stream.read(min(limit, os.fstat(stream.fileno()).st_size) + 1)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; check the file"
        ) from error
    if len(data) > limit:
        raise CheckpointError(
            f"{path} is larger than {limit >> 20} MiB, the most that is read of such a file; "
            "download the checkpoint again"
        )
    return data


def check_link(path: Path) -> None:
    """Raises CheckpointError for a link to anything else of the user: what a checkpoint says goes
    into files that are passed on. Links stay in their folder, in the hub's cache of the same
    repository, or lead to a file of the same name, as when a tokenizer or weights are shared."""
    link = path
    for _ in range(_MAX_LINKS):
        if not link.is_symlink():
            return
        folder = link.parent.resolve()
        target = Path(os.path.normpath(folder / link.readlink()))
        own = target.parent.resolve() == folder or target.name == link.name
        store = target.parent
        if not own and not (
            store.name == "blobs" and store.parent / "snapshots" in folder.parents
        ):
            break
        link = target
    raise CheckpointError(
        f"{path} is a link to {path.resolve()}, outside of the checkpoint; copy the file there if "
        "it belongs to it"
    )


def read_text(path: Path, limit: int = MAX_SMALL_FILE_BYTES) -> str | None:
    """A UTF-8 text file, or None where there is none."""
    data = read_file(path, limit)
    if data is None:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 text (byte {error.start}); download the checkpoint again"
        ) from error


def read_json(path: Path, limit: int = MAX_SMALL_FILE_BYTES) -> JsonObject | None:
    """A JSON object from a file, or None where there is no such file."""
    text = read_text(path, limit)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {error}; download the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, expected a JSON object"
        )
    return value


@overload
def get(obj: JsonObject, key: str, kind: type[T], where: str, default: T) -> T: ...
@overload
def get(
    obj: JsonObject, key: str, kind: type[T], where: str, default: None = None
) -> T | None: ...
def get(
    obj: JsonObject, key: str, kind: type[T], where: str, default: T | None = None
) -> T | None:
    """``obj[key]``, typed. Missing and null give ``default``; a wrong type is an error."""
    value = obj.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(
            f"{where}: {key} is {quote(repr(value))}, expected {kind.__name__}; correct the file"
        )
    return value


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def check_text(text: object, what: str) -> str:
    """A string that GGUF and llama.cpp can hold: UTF-8, without NUL (a C string ends there)."""
    if not isinstance(text, str):
        raise CheckpointError(
            f"{what} is {quote(repr(text))}, expected a string; correct the file"
        )
    if "\0" in text:
        raise CheckpointError(
            f"{what} {quote(text)} contains a NUL, which llama.cpp cannot read"
        )
    if not _is_unicode(text):
        raise CheckpointError(
            f"{what} {quote(text)} is not valid Unicode (a lone surrogate); correct the file"
        )
    return text


def check_id(value: object, what: str) -> int:
    """A token id: an integer from 0 to ``MAX_TOKENS``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value < MAX_TOKENS
    ):
        raise CheckpointError(
            f"{what} has the id {quote(repr(value))}, expected an integer from 0 to "
            f"{MAX_TOKENS - 1}; correct the file"
        )
    return value


@dataclass(slots=True)
class Token:
    """One vocabulary entry, as the GGUF file will hold it."""

    text: str
    type: int = NORMAL
    score: float = 0.0


@dataclass
class TokenTable:
    """Tokens by id, while a vocabulary is being read; ``where`` names the file in errors.

    ``escapes_spaces``: in this vocabulary U+2581 stands for a space (SentencePiece's form).
    """

    where: str
    escapes_spaces: bool = False
    tokens: dict[int, Token] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)

    def put(self, token_id: object, text: object, kind: int, score: float = 0.0) -> int:
        """Set one entry, over what stood there."""
        if (
            not isinstance(text, str)
            or not isinstance(token_id, int)
            or isinstance(token_id, bool)
        ):
            self._refuse(token_id, text)
        if not (
            0 <= token_id < MAX_TOKENS
            and 0 < len(text) <= MAX_TOKEN_LENGTH
            and "\0" not in text
        ):
            self._refuse(token_id, text)
        if not _is_unicode(text):
            self._refuse(token_id, text)
        self.tokens[token_id] = Token(text, kind, score)
        self._ids[text] = token_id
        return token_id

    def _refuse(self, token_id: object, text: object) -> NoReturn:
        name = check_text(text, f"{self.where}: the token")
        number = check_id(token_id, f"{self.where}: the token {quote(name)}")
        raise CheckpointError(
            f"{self.where}: the token with id {number} has {len(name)} characters, "
            f"expected 1 to {MAX_TOKEN_LENGTH}; correct the file"
        )

    def put_added(self, token_id: object, item: JsonObject) -> None:
        """Set an added token: a special one is a control token, another is user-defined.

        A control, unknown or byte token that is there already keeps its type. User-defined ones
        are matched in the raw text, before its spaces become U+2581.
        """
        special = get(item, "special", bool, self.where, False)
        text = check_text(item.get("content"), f"{self.where}: an added token")
        present = self.tokens.get(
            check_id(token_id, f"{self.where}: the token {quote(text)}")
        )
        if (
            present
            and present.text == text
            and present.type in (CONTROL, UNKNOWN, BYTE)
        ):
            return
        if special:
            self.put(token_id, text, CONTROL, ADDED_SCORE)
        else:
            text = text.replace("\u2581", " ") if self.escapes_spaces else text
            self.put(token_id, text, USER_DEFINED, ADDED_SCORE)

    def find(self, text: str) -> int | None:
        """The id of a token's text."""
        number = self._ids.get(text)
        return (
            number if number is not None and self.tokens[number].text == text else None
        )

    def __iter__(self) -> Iterator[tuple[int, Token]]:
        return iter(self.tokens.items())

    def padded(self, vocab_size: int) -> list[Token]:
        """All ``vocab_size`` entries in order: holes become unused ``[PAD{id}]`` tokens.

        llama.cpp aborts the process on two entries with one text, so that is refused here.
        """
        beyond = max(self.tokens, default=-1) + 1
        if beyond > vocab_size:
            raise CheckpointError(
                f"{self.where} has {beyond} tokens (the last is "
                f"{quote(self.tokens[beyond - 1].text)}) but vocab_size in config.json is "
                f"{vocab_size}; remove the surplus tokens, or resize the model's embeddings"
            )
        rows = [
            self.tokens.get(i) or Token(f"[PAD{i}]", UNUSED, PAD_SCORE)
            for i in range(vocab_size)
        ]
        seen: dict[str, int] = {}
        for number, token in enumerate(rows):
            first = seen.setdefault(token.text, number)
            if first != number:
                raise CheckpointError(
                    f"{self.where}: the tokens {first} and {number} have the same text "
                    f"{quote(token.text)}, on which llama.cpp aborts; rename one of them"
                )
        return rows
