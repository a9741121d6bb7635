"""GPT-2's byte symbols: each byte as one printable character, the plain ones as themselves."""

from __future__ import annotations

_PLAIN = {*range(33, 127), *range(161, 173), *range(174, 256)}
_SPARE = [chr(256 + i) for i in range(256 - len(_PLAIN))]
#: The symbol of each byte, by its value.
SYMBOLS = tuple(
    chr(byte) if byte in _PLAIN else _SPARE[byte - sum(b < byte for b in _PLAIN)]
    for byte in range(256)
)
_BY_BYTE = dict(enumerate(SYMBOLS))
_BYTES = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}


def symbols_of(data: bytes) -> str:
    return data.decode("latin-1").translate(_BY_BYTE)


def text_of(symbols: str) -> str:
    """The text that symbols stand for; what is no whole character becomes U+FFFD."""
    return bytes(_BYTES.get(symbol, 0x80) for symbol in symbols).decode(
        "utf-8", "replace"
    )
