"""A question on a text → the tokens of a prompt, in the file's own template or raw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ggext.chat.prompt import Prompts
from ggext.chat.transcript import Turn
from ggext.errors import ModelError, UsageError
from ggext.quality.samples import Question, Sample

if TYPE_CHECKING:
    from ggext.runtime.model import Model

#: The file's chat template; the bare text; the template where the file has one.
Form = Literal["template", "raw", "auto"]


class PromptMaker:
    """Makes prompts for one model. ``form``: "template" or "raw". Raises UsageError where the file
    has no template."""

    def __init__(self, model: Model, form: Form = "auto") -> None:
        if form == "template" and model.chat_template is None:
            raise UsageError(f"{model.path} has no chat template: take the form raw")
        self.model = model
        self.form: Literal["template", "raw"] = "template"
        if form == "raw" or model.chat_template is None:
            self.form = "raw"
        self._prompts = Prompts(model, think=False)

    def prompt(self, body: str, question: Question) -> list[int]:
        """The tokens up to where the answer goes on from the question's opening. Raises ModelError
        for more than one BOS."""
        text = f"{body}\n{question.text}"
        if self.form == "raw":
            tokens = self._raw(f"{text}\n{question.opening}".rstrip())
        else:
            opening = self._plain(question.opening)
            tokens = self._prompts.tokens([Turn("user", text)]) + opening
        self._check_bos(tokens)
        return tokens

    def answer(self, question: Question) -> list[int]:
        """The tokens of the one answer, as they follow the opening."""
        opening = self._plain(question.opening)
        spaced = f"{question.opening} {question.answers[0]}".lstrip()
        whole = self._plain(spaced)
        if whole[: len(opening)] == opening:
            return whole[len(opening) :]
        return self._plain(
            f" {question.answers[0]}"
        )  # the opening's last token would merge

    def count(self, sample: Sample) -> int:
        """Tokens of the longest prompt with its answer, or with the room for one; of the question
        that is longest by itself, since a long text takes its time to be tokenized."""
        longest = max(sample.questions, key=self._own_tokens)
        return len(self.prompt(sample.body, longest)) + self.room(longest)

    def _own_tokens(self, question: Question) -> int:
        words = f"{question.text}\n{question.opening}"
        return len(self._plain(words)) + self.room(question)

    def room(self, question: Question) -> int:
        """Tokens that the answer may take."""
        return (
            len(self.answer(question)) if question.budget is None else question.budget
        )

    def spells(self, text: str) -> bool:
        """Whether the vocabulary has every character of a text."""
        pieces = b"".join(map(self.model.token_to_piece, self._plain(text)))
        return pieces.decode("utf-8", "replace").strip() == text.strip()

    def _plain(self, text: str) -> list[int]:
        return self.model.tokenize(text, add_special=False)

    def _raw(self, text: str) -> list[int]:
        tokens = self._plain(text)
        return [self.model.bos, *tokens] if self.model.adds_bos else tokens

    def _check_bos(self, tokens: Sequence[int]) -> None:
        """A template that writes its own BOS before the one that the vocabulary adds makes two,
        which shifts every score and shows nowhere."""
        bos = self.model.bos
        # ChatML models may have their turn marker as BOS: only the first two tokens tell.
        if self.model.adds_bos and (tokens[0] != bos or tokens[1] == bos):
            raise ModelError(
                f"{self.model.path}: the prompt begins with {tokens[:2].count(bos)} BOS tokens "
                "where one belongs: its chat template writes another; take the form raw"
            )
