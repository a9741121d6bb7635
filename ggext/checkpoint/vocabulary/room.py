"""How many bytes a vocabulary takes up in a header, before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from ggext.checkpoint.files import MAX_TOKENS
from ggext.gguf.plain_files import open_plain

#: What a token takes up in addition to its text: in GGUF 8 bytes of length, 4 of score and 4 of
#: type; in tokenizer.model 9 (of protocol-buffer tags, lengths and the score), and more where it
#: has a type.
_IN_GGUF, _IN_SENTENCEPIECE = 16, 9
#: Files that add tokens or chat templates, each no longer in GGUF than in these.
_BESIDE = (
    "added_tokens.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
#: Llama's and Gemma's files have 16 bytes a token. In one of many more, most is no vocabulary.
_MOST_PER_TOKEN = 64


def vocabulary_room(folder: Path, vocab_size: int) -> int | None:
    """Enough bytes for the keys that ``read_vocabulary`` makes of a SentencePiece model, but for a
    few KB, and little more. ``None``: nothing is known, since a tokenizer.json may be several times
    as long as what is made of it."""
    try:
        with os.fdopen(open_plain(folder / "tokenizer.model"), "rb") as file:
            begins_with_a_piece = file.read(1) == b"\n"
        files = [
            path
            for name in ("tokenizer.model", *_BESIDE)
            if (path := folder / name).is_file()
        ]
        nbytes = sum(path.stat().st_size for path in files)
    except OSError:
        return None
    if (
        not begins_with_a_piece
        or nbytes > _MOST_PER_TOKEN * vocab_size
        or vocab_size > MAX_TOKENS
    ):
        return None
    return nbytes + (_IN_GGUF - _IN_SENTENCEPIECE) * vocab_size
