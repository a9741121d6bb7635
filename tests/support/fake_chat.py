"""A chat without a model: an engine that answers from a queue, and a screen that types a script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ggext.chat.commands import obey
from ggext.chat.conversation import ChatOptions, Conversation
from ggext.chat.fit import Room
from ggext.chat.loop import Chat
from ggext.chat.screens import Status
from ggext.chat.session import Keeper
from ggext.errors import ContextFullError
from ggext.runtime.engine import FinishReason, Prefill, Sampling

CONTROL = {"<s>": 256, "</s>": 257, "<|system|>": 258, "<|user|>": 259, "<|bot|>": 260}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ 'bot' if m.role == 'assistant' else m.role }}|>"
    "{{ m.content | trim }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


class Letters:
    """A vocabulary of bytes and five control tokens."""

    bos, eos = 256, 257

    def __init__(
        self, chat_template: str | None = TEMPLATE, adds_bos: bool = True
    ) -> None:
        self.chat_template = chat_template
        self.adds_bos = adds_bos

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        tokens = [self.bos] if add_special and self.adds_bos else []
        pattern = "|".join(map(re.escape, CONTROL))
        for part in re.split(f"({pattern})", text) if parse_special else [text]:
            tokens += (
                [CONTROL[part]] if part in CONTROL and parse_special else part.encode()
            )
        return tokens

    def token_to_piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def token_text(self, token: int) -> str:
        return {number: text for text, number in CONTROL.items()}.get(token, "?")

    def is_control(self, token: int) -> bool:
        return token >= 256

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens as one line, control tokens in guillemets."""
        pieces = (
            self.token_text(t).replace("<", "«").replace(">", "»").encode()
            if t > 255
            else bytes([t])
            for t in tokens
        )
        return b"".join(pieces).decode("utf-8", "replace")


class Answered:
    """A generation that gives the queued bytes, and remembers in the engine what was evaluated."""

    def __init__(
        self, engine: QueuedEngine, answer: bytes, finish: FinishReason
    ) -> None:
        self.engine, self.answer, self.last = engine, answer, finish
        self.finish: FinishReason | None = None
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[int]:
        for token in self.answer:
            yield token
            if self.engine.cancelled or self.engine.available == 0:
                self.finish = "cancelled" if self.engine.cancelled else "context"
                return
            self.engine.tokens.append(token)
        self.finish = self.last


class QueuedEngine:
    """An engine that answers from a queue."""

    def __init__(self, *answers: str | bytes, n_ctx: int = 1000) -> None:
        self.answers = [a.encode() if isinstance(a, str) else a for a in answers]
        self.tokens: list[int] = []
        self.prompts: list[list[int]] = []
        self.n_ctx, self.trained, self.ever_dropped = n_ctx, 2000, 0
        self.forgotten = 0
        self.finish: FinishReason = "eog"
        self.cancelled = False

    @property
    def used(self) -> int:
        return len(self.tokens)

    @property
    def available(self) -> int:
        return self.n_ctx - self.used

    def evaluate(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        *,
        repeatable: bool = False,  # noqa: ARG002 - it has no batches
    ) -> Prefill:
        self.cancelled = False
        pairs = zip(self.tokens, tokens, strict=False)
        reused = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.tokens))
        if len(tokens) > self.n_ctx:
            raise ContextFullError(len(tokens) - reused, reused, self.n_ctx - reused)
        if progress is not None:
            progress(0, len(tokens) - reused)
        if self.cancelled:
            return Prefill(reused, 0, 0.0, cancelled=True)
        self.tokens = list(tokens)
        self.prompts.append(list(tokens))
        return Prefill(reused, len(tokens) - reused, 0.0, cancelled=False)

    def read_ahead(
        self,
        tokens: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        *,
        repeatable: bool = False,  # noqa: ARG002 - it has no batches
    ) -> Prefill:
        """In steps of ten, as long as no one cancels."""
        self.cancelled, done = False, 0
        while done + 10 <= len(tokens) and not self.cancelled:
            done += 10
            if progress is not None:
                progress(done, len(tokens) // 10 * 10)
        self.tokens = list(tokens[:done])
        return Prefill(0, done, 0.0, cancelled=done < len(tokens))

    def generate(self, _sampling: Sampling, max_tokens: int | None = None) -> Answered:
        return Answered(self, self.answers.pop(0)[:max_tokens], self.finish)

    def cancel(self) -> None:
        self.cancelled = True


class Script:
    """A screen that types what it is given and writes down everything."""

    def __init__(self, *inputs: str | type[KeyboardInterrupt]) -> None:
        self.inputs = list(inputs)
        self.show_thoughts = False
        self.markdown = True
        self.lines: list[str] = []
        self.interrupt_at: str | None = None
        self.cancel: Callable[[], None] = lambda: None
        self.noted: Callable[[Callable[[], str]], object] = lambda _: None

    def read(self, note: Callable[[], str] | None = None) -> str | None:
        if note is not None:
            self.noted(note)
        if not self.inputs:
            self.lines.append("> ^D")
            return None
        line = self.inputs.pop(0)
        if not isinstance(line, str):
            self.lines.append("> ^C")
            raise KeyboardInterrupt
        self.lines.append(f"> {line}")
        return line

    def notice(self, text: str) -> None:
        self.lines.append(f"- {text}")

    def error(self, text: str) -> None:
        self.lines.append(f"! {text}")

    def status(self, status: Status) -> None:
        self.lines.append(f"= {status}")

    def thought(self, text: str) -> None:
        if not self.lines[-1].startswith("? "):
            self.lines.append("? ")
        self.lines[-1] += text

    def waiting(self, _text: str) -> AbstractContextManager[None]:
        return nullcontext()

    def progress(self, _done: int, _total: int) -> None:
        if self.interrupt_at == "prefill":
            self.cancel()

    def answer(self, text: str) -> None:
        if not self.lines[-1].startswith("< "):
            self.lines.append("< ")
        self.lines[-1] += text
        if text == self.interrupt_at:
            self.cancel()

    def end_answer(self) -> None:
        pass

    @contextmanager
    def interrupts(self, cancel: Callable[[], None]) -> Iterator[None]:
        self.cancel = cancel
        yield

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def room(engine: QueuedEngine) -> Room:
    return Room(
        Path("model.gguf"),
        engine.n_ctx,
        8000,
        engine.trained,
        lambda tokens: 512 * tokens,
        lambda tokens: 512 * tokens,
        2**30,
    )


def chat(
    engine: QueuedEngine,
    screen: Script,
    *,
    template: str | None = TEMPLATE,
    sampling: Sampling | None = None,
    keeper: Keeper | None = None,
    **options: Any,
) -> Conversation:
    """Runs the whole script; the conversation afterwards."""
    conversation = Conversation(
        Letters(template), engine, sampling or Sampling(seed=1), ChatOptions(**options)
    )
    Chat(conversation, screen, room(engine), keeper).run(obey)
    return conversation
