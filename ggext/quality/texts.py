"""The user's own documents: read, cut into sentences for haystacks, and into pieces of tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ggext.data import demo_language as language
from ggext.errors import UsageError
from ggext.gguf.plain_files import NotPlainError, read_bounded
from ggext.quality.tasks import UserQuestion

if TYPE_CHECKING:
    from ggext.runtime.model import Model

_MAX_BYTES = 1 << 30
_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"'”’)]*")
_MOST_PIECES = 1000
_LONGEST_SENTENCE = 60  # words; what has no full stop is cut there


@dataclass(frozen=True)
class Piece:
    """A run of tokens to score."""

    # Its name in a report: the document and its place there.
    name: str
    # A BOS first, where the vocabulary wants one.
    tokens: tuple[int, ...]
    # The first token to score, at least 1.
    first: int = 1


def read_text(path: Path) -> str:
    """A document of UTF-8; what is none is replaced. Raises UsageError."""
    try:
        with path.open("rb") as file:
            text = read_bounded(file, _MAX_BYTES).decode("utf-8", "replace")
    except NotPlainError:
        raise UsageError(
            f"{path} has more than {_MAX_BYTES >> 30} GiB; take a part of it"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise UsageError(f"{path} holds no text")
    return text


def digest(path: Path) -> str:
    """What tells a document from others. Raises as `read_text`."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()[:16]


def documents_in(
    path: Path, suffixes: Sequence[str] = (".txt", ".text", ".md")
) -> tuple[Path, ...]:
    """The document itself, or those of a folder and its folders with these endings, by name,
    less empty ones. Raises UsageError for none."""
    if not path.is_dir():
        return (path,)
    inside = (one for one in path.rglob("*") if one.suffix.lower() in suffixes)
    texts = tuple(sorted(one for one in inside if one.is_file() and one.stat().st_size))
    if not texts:
        raise UsageError(
            f"{path} holds no document ({', '.join(suffixes)}): name another folder"
        )
    return texts


def read_questions(path: Path) -> tuple[UserQuestion, ...]:
    """The user's own questions: JSON lines with ``question``, ``answers`` (a list, one of which is
    enough) and ``passage``. Raises UsageError naming the line."""
    questions = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            texts = [values["question"], values["passage"], *values["answers"]]
            if len(texts) < 3 or not all(
                isinstance(one, str) and one.strip() for one in texts
            ):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UsageError(
                f"{path}, line {number}, is not a question: it must be JSON such as "
                '{"question": "...", "answers": ["..."], "passage": "..."}'
            ) from None
        questions.append(UserQuestion(texts[0], tuple(texts[2:]), texts[1]))
    return tuple(questions)


def embedded_text() -> str:
    """The document that ggext has with it, of some 700 words."""
    return (files("ggext") / "data" / "document.txt").read_text("utf-8")


def filler_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The sentences of the texts, for `sentences_from`."""
    sentences: list[str] = []
    for text in texts:
        for match in _SENTENCE.finditer(text):
            split = match[0].split()
            starts = range(0, len(split), _LONGEST_SENTENCE)
            sentences += [
                " ".join(split[start : start + _LONGEST_SENTENCE]) for start in starts
            ]
    return tuple(sentences)


def sentences_from(texts: Sequence[str], rng: Random) -> Iterator[str]:
    """The sentences in their order from a random one on, from the start again after the last."""
    start = rng.randrange(len(texts))
    while True:
        yield from texts[start:]
        start = 0


def pieces(
    model: Model, texts: Sequence[tuple[str, str]], length: int, *, marks: bool = False
) -> list[Piece]:
    """Pieces of exactly `length` tokens that do not overlap, of one text after the other in turn.

    `texts`: name and text. `marks`: see `EvalOptions`. However many are taken, they are spread over
    the texts. Raises UsageError where no text is long enough.
    """
    passages = [_of_one(model, name, text, length, marks) for name, text in texts]
    if not any(passages):
        longest = max(
            len(model.tokenize(text, parse_special=marks)) for _, text in texts
        )
        raise UsageError(
            f"the longest text has {longest:,} tokens, too few for a length of {length:,}: give a "
            "longer text, or shorter lengths"
        )
    most = max(map(len, passages))
    return [part[i] for i in range(most) for part in passages if i < len(part)][
        :_MOST_PIECES
    ]


def beginnings(
    model: Model, texts: Sequence[tuple[str, str]], length: int
) -> list[Piece]:
    """The first `length` tokens of each text that has so many. Raises UsageError for none."""
    passages = [_of_one(model, name, text, length)[:1] for name, text in texts]
    if not any(passages):
        raise UsageError(
            f"no text has {length:,} tokens: give longer texts, or shorter lengths"
        )
    return [piece for part in passages for piece in part]


def _of_one(
    model: Model, name: str, text: str, length: int, marks: bool = False
) -> list[Piece]:
    """A document's pieces, the first ones far apart; the very first is its beginning."""
    bos = [model.bos] if model.adds_bos else []
    body = length - len(bos)
    tokens = model.tokenize(text, add_special=False, parse_special=marks)
    slots = sorted(range(len(tokens) // body), key=_bits_reversed)
    return [
        Piece(f"{name}@{slot * body}", (*bos, *tokens[slot * body : (slot + 1) * body]))
        for slot in slots[:_MOST_PIECES]
    ]


def _bits_reversed(number: int) -> int:
    return int(f"{number:032b}"[::-1], 2)


def little_piece(model: Model, length: int, index: int, seed: int) -> Piece:
    """The same in the embedded model's own language, whose texts have any length."""
    rng = Random(f"perplexity {seed} {index}")
    facts = min(language.RECALL_FACTS, (length - 2) // (2 * language.FACT_TOKENS))
    text = language.document(rng, language.facts(rng, facts), length - 2)
    prompt = f"{language.BOS}{language.USER}{text}"
    tokens = model.tokenize(prompt, add_special=False, parse_special=True)
    return Piece(f"made-up text {index + 1}", tuple(tokens))


def llama_cpp_pieces(model: Model, text: str, n_ctx: int) -> list[Piece]:
    """llama-perplexity's chunks: `n_ctx` tokens in a row, the first replaced by a BOS where the
    vocabulary wants one, the second half scored. Raises UsageError for a text of fewer than two."""
    tokens = model.tokenize(text)
    if len(tokens) < 2 * n_ctx:
        raise UsageError(
            f"the text has {len(tokens):,} tokens; llama-perplexity's protocol needs two chunks, "
            f"{2 * n_ctx:,}: give a longer text, or shorter lengths"
        )
    texts = []
    for i in range(min(_MOST_PIECES, len(tokens) // n_ctx)):
        chunk = tokens[i * n_ctx : (i + 1) * n_ctx]
        if model.adds_bos:
            chunk[0] = model.bos
        texts.append(Piece(f"chunk {i + 1}", tuple(chunk), n_ctx // 2 + 1))
    return texts
