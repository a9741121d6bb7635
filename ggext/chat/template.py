"""A file's chat template: turns in, the prompt's text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggext.errors import GgextError

if TYPE_CHECKING:
    from ggext.chat.transcript import Turn

_MAX_TEMPLATE = 1 << 20
_MAX_SECONDS = 5.0
# A prompt is the turns and their markers; nothing grows them more than this.
_MAX_GROWTH = 8
_MAX_MARKERS = 1 << 20


class TemplateError(GgextError):
    """The file's chat template is malformed, hostile, or refuses the conversation."""


class ChatTemplate:
    """Renders turns with a Hugging Face chat template, as transformers does, in a sandbox.

    ``special``: names such as ``bos_token`` and the spellings of those tokens. Raises TemplateError
    for a template that does not compile.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        from ggext.chat.sandbox import Sandbox

        if len(source) > _MAX_TEMPLATE:
            raise TemplateError(
                f"the file's chat template has {len(source)} characters, more than {_MAX_TEMPLATE}"
            )
        self._special = dict(special)
        self._environment = Sandbox(_MAX_MARKERS)
        with _errors_in_one_line():
            self._template = self._environment.from_string(source)

    def render(self, turns: Sequence[Turn], think: bool | None = None) -> str:
        """The prompt's text, the answer's opening included; ``think`` under the names that
        templates ask for.

        Raises TemplateError.
        """
        size = sum(len(turn.content) + len(turn.reasoning) for turn in turns)
        limit = self._environment.max_text = _MAX_GROWTH * size + _MAX_MARKERS
        with _errors_in_one_line():
            pieces = self._template.generate(
                messages=[_message(turn) for turn in turns],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special,
                **({} if think is None else {"enable_thinking": think, "thinking": think}),
            )
            return _joined(pieces, limit)


def _message(turn: Turn) -> dict[str, Any]:
    message = {"role": turn.role, "content": turn.content}
    return message | {"reasoning_content": turn.reasoning} if turn.reasoning else message


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    from jinja2.exceptions import TemplateError as JinjaError

    from ggext.chat.sandbox import deadline

    try:
        with deadline(_MAX_SECONDS):
            yield
    except TemplateError:
        raise
    except JinjaError as error:
        raise _refusal(error) from error
    # A template can raise whatever Python raises: division by zero, recursion, a wrong type.
    except Exception as error:
        raise TemplateError(
            f"the file's chat template fails: {type(error).__name__}: {_line(error)}"
        ) from error


def _joined(pieces: Iterable[str], limit: int) -> str:
    texts: list[str] = []
    length = 0
    for piece in pieces:
        texts.append(piece)
        length += len(piece)
        if length > limit:
            raise TemplateError(f"the file's chat template makes more than {limit} characters")
    return "".join(texts)


def _refusal(error: Exception) -> TemplateError:
    from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

    if isinstance(error, TemplateSyntaxError):
        return TemplateError(
            f"the file's chat template, line {error.lineno}: {_line(error.message)}"
        )
    if isinstance(error, UndefinedError):
        return TemplateError(f"the file's chat template fails: {_line(error)}")
    if isinstance(error, SecurityError):
        return TemplateError(f"the file's chat template is not allowed: {_line(error)}")
    return TemplateError(f"the file's chat template refuses this conversation: {_line(error)}")


def _line(message: object) -> str:
    """One printable line of at most 200 characters: the words may be the template's own."""
    words = " ".join(str(message).split())
    return "".join(c if c.isprintable() else "?" for c in words)[:200] or "no reason given"
