"""The texts of a run: read, tokenized as the tokenizer says, and some set aside before all else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError, UsageError, first_line
from ggext.quality.texts import documents_in, read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Held out for the evaluation: this share of the documents, and at least so many.
HELD_OUT_SHARE, HELD_OUT_LEAST = 0.1, 8
_SUFFIXES = (".txt", ".text", ".md", ".jsonl")
#: The role whose turns are learned.
ANSWERS = "assistant"


@dataclass(frozen=True)
class Document:
    """A text, whole."""

    # Its file, and its line there where a file holds several.
    name: str
    # Empty where there are messages.
    text: str
    # A chat, as role and content of each turn: only what the assistant says is learned.
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Split:
    """Documents to train on, and those that the run never sees."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Files of text, and folders with ``.txt``, ``.text``, ``.md`` and ``.jsonl`` files, at any
    depth. A line of a ``.jsonl`` file is a document: an object with ``text``, or with ``messages``,
    each of them an object with ``role`` and ``content``. Raises UsageError."""
    files = (file for path in paths for file in documents_in(path, _SUFFIXES))
    return [document for file in files for document in _read(file)]


def _read(path: Path) -> Iterator[Document]:
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        yield Document(str(path), text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _of_line(line, f"{path}:{number}")


def _of_line(line: str, name: str) -> Document:
    try:
        values = json.loads(line)
        turns = tuple(
            (turn["role"], turn["content"]) for turn in values.get("messages", ())
        )
        text = "" if turns else values["text"]
        if not all(isinstance(part, str) for part in (text, *sum(turns, ()))):
            raise TypeError
        if not text.strip() and not any(role == ANSWERS for role, _ in turns):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UsageError(
            f'{name} is not a document: it must be JSON such as {{"text": "..."}}, or '
            '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'
        ) from None
    return Document(name, text, turns)


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
class Encoded:
    """A document's tokens with its end, and which of them are learned; (n_tokens,) each."""

    tokens: NDArray[np.int32]
    learned: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


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
        start = next(
            (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None
        )
        if not plain or start is None:
            raise CheckpointError(
                f"{folder}: the tokenizer makes {plain} of a letter, and {whole} with its special "
                "tokens: where a text begins and ends cannot be told"
            )
        return cls(tokenizer, tuple(whole[:start]), tuple(whole[start + len(plain) :]))

    def encode(self, document: Document) -> Encoded:
        """Without the prefix, which each row gets. A mark of the vocabulary that the text spells,
        such as ``<|im_end|>``, is that mark. Raises UsageError for a chat that cannot be written
        as one."""
        import numpy as np

        text, answers = self.render(document)
        encoding = self.tokenizer(
            text,
            add_special_tokens=False,
            verbose=False,
            return_offsets_mapping=bool(answers),
        )
        ids = encoding["input_ids"]
        learned = np.ones(len(ids), np.bool_)
        if answers:
            starts = np.array([start for start, _ in encoding["offset_mapping"]])
            learned = np.any([(starts >= a) & (starts < b) for a, b in answers], axis=0)
        skipped = (
            len(self.prefix) if tuple(ids[: len(self.prefix)]) == self.prefix else 0
        )
        end = () if answers else self.suffix
        tokens = np.array([*ids[skipped:], *end], np.int32)
        return Encoded(
            tokens, np.append(learned[skipped:], np.ones(len(end), np.bool_))
        )

    def render(self, document: Document) -> tuple[str, list[tuple[int, int]]]:
        """The text, of a chat as the checkpoint's template writes it, and where in it the answers
        stand, in characters."""
        if not document.messages:
            return document.text, []
        turns = [
            {"role": role, "content": content} for role, content in document.messages
        ]
        text = self._template(document, turns)
        answers = []
        for place, (role, _) in enumerate(document.messages):
            if role != ANSWERS:
                continue
            before = self._template(document, turns[:place], add_generation_prompt=True)
            whole = self._template(document, turns[: place + 1])
            if not whole.startswith(before) or not text.startswith(whole):
                raise UsageError(
                    f"{document.name}: the checkpoint's chat template writes an answer otherwise "
                    "once others follow, so what is to be learned cannot be told; give the text "
                    "as it is to be read"
                )
            answers.append((len(before), len(whole)))
        return text, answers

    def _template(
        self, document: Document, turns: list[dict[str, str]], **options: bool
    ) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
            )
        except (ValueError, TemplateError) as error:
            raise UsageError(
                f"{document.name}: no chat can be made: {first_line(error)}"
            ) from None
