"""Texts for a SentencePiece vocabulary without all byte tokens, as character-level models have.

For a character that is no piece llama.cpp looks up the tokens of its bytes, and throws through its
C interface where one is not there, which ends the process. SentencePiece gives the unknown token
for a run of such characters; so does this: llama.cpp is asked only for what lies between.

llama.cpp puts a space before every text that it is asked for, which must not happen after an
unknown character. So its flag is overridden, and the space is put here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ggext.gguf.reader import GgufFile

#: The key that is overridden for such a model.
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_SPACE = "\u2581"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # LLAMA_TOKEN_TYPE_*

#: Tokens of a text that has neither unknown characters nor special tokens.
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class UnknownCharacters:
    """What a vocabulary's header says."""

    # by id, and the type of each
    tokens: Sequence[str]
    kinds: Sequence[int]
    # the id that stands for what no piece has
    unknown: int
    # whether a text begins with a space of its own
    space_prefix: bool

    @staticmethod
    def of(header: GgufFile) -> UnknownCharacters | None:
        """``None`` for a vocabulary of another kind, or with all byte tokens."""
        tokens = header.get("tokenizer.ggml.tokens")
        if header.get("tokenizer.ggml.model") != "llama" or not isinstance(
            tokens, list
        ):
            return None
        if not {f"<0x{byte:02X}>" for byte in range(256)} - set(tokens):
            return None
        kinds = header.get("tokenizer.ggml.token_type")
        unknown = header.get("tokenizer.ggml.unknown_token_id", 0)
        unknown = (
            unknown if isinstance(unknown, int) and 0 <= unknown < len(tokens) else 0
        )
        kinds = kinds if isinstance(kinds, list) else []
        return UnknownCharacters(
            tokens,
            kinds,
            unknown,
            header.get(SPACE_PREFIX, True) is not False,
        )

    def tokenize(
        self, text: str, tokenize: Tokenize, *, parse_special: bool
    ) -> list[int]:
        """The tokens of ``text``, without BOS and EOS."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        tokens: list[int] = []
        for fragment, special in self._fragments(text, parse_special):
            if special is not None:
                tokens.append(special)
                continue
            spaced = " " + fragment if self.space_prefix else fragment
            for known, run in self._runs(spaced):
                tokens += tokenize(known) if known else []
                tokens += [self.unknown] if run else []
        return tokens

    def _fragments(
        self, text: str, parse_special: bool
    ) -> Iterator[tuple[str, int | None]]:
        """Plain text, and special tokens with their ids."""
        kinds = (
            {_USER_DEFINED, _CONTROL, _UNKNOWN} if parse_special else {_USER_DEFINED}
        )
        spellings = {
            token: number
            for number, (token, kind) in enumerate(
                zip(self.tokens, self.kinds, strict=False)
            )
            if kind in kinds and token
        }
        if not spellings:
            yield from [(text, None)] if text else []
            return
        longest_first = sorted(spellings, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part:
                yield part, spellings.get(part)

    def _runs(self, text: str) -> Iterator[tuple[str, str]]:
        """Known characters, and the unknown ones that follow them."""
        start = 0
        while start < len(text):
            known = start
            while known < len(text) and self._is_known(text[known]):
                known += 1
            end = known
            while end < len(text) and not self._is_known(text[end]):
                end += 1
            yield text[start:known], text[known:end]
            start = end

    def _is_known(self, character: str) -> bool:
        character = _SPACE if character == " " else character
        if character in self._present:
            return True
        return all(
            f"<0x{byte:02X}>" in self._present for byte in character.encode("utf-8")
        )

    @cached_property
    def _present(self) -> frozenset[str]:
        return frozenset(self.tokens)
