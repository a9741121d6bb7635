"""The smallest tokenizer.json."""

from __future__ import annotations

from typing import Any

from vocabulary import BYTE_LEVEL, tokenizer_json

from ggext.checkpoint.vocabulary.byte_level import SYMBOLS

# tokenizer.json ----------------------------------------------------------------------------------


def tiny(**changes: Any) -> dict[str, Any]:
    """The smallest good tokenizer.json: the bytes, one merge, one special token (257)."""
    vocab = {symbol: byte for byte, symbol in enumerate(SYMBOLS)} | {"ab": 256}
    return tokenizer_json(
        vocab, [["a", "b"]], BYTE_LEVEL | {"use_regex": True}, **changes
    )


DIGITS = {"type": "Digits", "individual_digits": True}
