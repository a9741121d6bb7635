"""The texts of a run: read, tokenized as the tokenizer says, and some set aside before all else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError, UsageError, first_line
from ggext.quality.texts import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Held out for the evaluation: this share of the documents, and at least so many.
HELD_OUT_SHARE, HELD_OUT_LEAST = 0.1, 8
_SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Document:
    """A text, whole."""

    # Its file, and its line there where a file holds several.
    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """Documents to train on, and those that the run never sees."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Files of text, and folders with ``.txt``, ``.md`` and ``.jsonl`` files, at any depth. A line
    of a ``.jsonl`` file is a document: an object with ``text``. Raises UsageError."""
    found = [document for path in paths for file in _files(path) for document in _read(file)]
    if not found:
        named = ", ".join(map(str, paths))
        raise UsageError(f"there is no text in {named}: name {', '.join(_SUFFIXES)} files")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in inside if file.is_file() and file.stat().st_size)


def _read(path: Path) -> Iterator[Document]:
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        yield Document(str(path), text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Document(f"{path}:{number}", _text_of(line, f"{path}, line {number}"))


def _text_of(line: str, place: str) -> str:
    try:
        text = json.loads(line)["text"]
        if not isinstance(text, str) or not text.strip():
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(
            f'{place}, is not a document: it must be JSON such as {{"text": "..."}}'
        ) from None
    return text


def split(documents: Sequence[Document], seed: int) -> Split:
    """Sets documents aside, the same for every run with a seed. Raises UsageError for too few."""
    count = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * len(documents)))
    if len(documents) <= count:
        raise UsageError(
            f"the texts are {len(documents)} documents, and {count} are set aside to be evaluated "
            "on: give more of them; a book can be cut into a file for each chapter"
        )
    order = list(range(len(documents)))
    Random(f"held out {seed}").shuffle(order)
    aside = set(order[:count])
    parts: tuple[list[Document], list[Document]] = [], []
    for index, document in enumerate(documents):
        parts[index in aside].append(document)
    return Split(tuple(parts[0]), tuple(parts[1]))


@dataclass(frozen=True)
class Encoder:
    """Text → tokens, with what the tokenizer puts around a text kept apart."""

    tokenizer: Any
    # Token ids before and after every text: BOS and EOS, where the tokenizer adds them.
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path) -> Encoder:
        """The tokenizer of a checkpoint. Raises CheckpointError."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(
                f"{folder}: transformers cannot read its tokenizer: {first_line(error)}"
            ) from None
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
        if not plain or start is None:
            raise CheckpointError(
                f"{folder}: the tokenizer makes {plain} of a letter, and {whole} with its special "
                "tokens: where a text begins and ends cannot be told"
            )
        return cls(tokenizer, tuple(whole[:start]), tuple(whole[start + len(plain) :]))

    def tokens(self, document: Document) -> NDArray[np.int32]:
        """Those of the text and of its end, without the prefix, which each row gets. A mark of the
        vocabulary that the text spells, such as ``<|im_end|>``, is that mark."""
        import numpy as np

        ids = self.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if self.prefix and tuple(ids[: len(self.prefix)]) == self.prefix:
            ids = ids[len(self.prefix) :]  # the text brings its own
        return np.array([*ids, *self.suffix], np.int32)
