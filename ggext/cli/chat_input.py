"""What `ggext chat` is asked: by the command line, by documents, by the standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggext.chat.documents import MAX_DOCUMENT, Document, document, read_document
from ggext.errors import UsageError
from ggext.gguf.plain_files import NotPlainError, read_bounded

_STDIN = "-"


@dataclass(frozen=True)
class ChatInput:
    """One question, or a chat."""

    # what is typed after the documents; None: a chat, or documents alone
    question: str | None
    # what stands before the question, or waits for the first one of a chat
    documents: tuple[Document, ...]
    # whether it is a chat, in which questions are typed
    is_chat: bool

    @property
    def turn(self) -> str:
        """The one turn that documents and question make."""
        from ggext.chat.conversation import with_documents

        texts = [one.text for one in self.documents]
        if self.question:
            return with_documents(texts, self.question)
        return with_documents(texts[:-1], texts[-1])


def parse_input(
    prompt: str | None, names: Sequence[str], *, one_answer: bool
) -> ChatInput:
    """What is asked. Raises UsageError.

    What is piped is a document where `prompt` asks a question, and else the question. Documents
    alone are a turn, but on a terminal they wait. ``one_answer``: there will be no chat.
    """
    if names.count(_STDIN) > 1:
        raise UsageError("-f - reads the standard input, which can be read once")
    documents = [_document(name) for name in names]
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if prompt is None and on_terminal and not one_answer:
        return ChatInput(None, tuple(documents), is_chat=True)
    question = prompt
    if _STDIN not in names and _is_piped(
        optional=prompt is not None or bool(documents)
    ):
        piped = _stdin()
        if question is None:
            question = piped.text.rstrip("\n")
        elif piped.text.strip():
            documents.append(piped)
    if not question and not documents:
        if question is None:
            return ChatInput(None, (), is_chat=True)
        where = "nothing on the standard input" if prompt is None else "-p is empty"
        raise UsageError(
            f"there is no question: {where}; ask with -p TEXT, or give a text to continue with -f"
        )
    return ChatInput(question, tuple(documents), is_chat=False)


def _is_piped(*, optional: bool) -> bool:
    """Whether there is a text on the standard input. Where it is ``optional`` only a file or a pipe
    counts: another thing, such as what a service manager left open, may never end."""
    if not optional:
        return not sys.stdin.isatty()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or a stream of a host program
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _document(name: str) -> Document:
    return _stdin() if name == _STDIN else read_document(Path(name))


def _stdin() -> Document:
    try:
        data = read_bounded(sys.stdin.buffer, MAX_DOCUMENT)
    except NotPlainError as error:
        raise UsageError(f"the standard input {error.strerror}") from None
    return document(data, "the standard input")
