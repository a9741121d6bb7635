"""What a table is worth on a text: the loss on the tokens that need the long context.

Perplexity over all tokens hides a model that finds nothing, so it is not asked for at the target:
either the answers about needles are scored, or the key tokens of the user's own documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Protocol

from ggext.errors import UsageError
from ggext.quality.bench import Bench, short_windows
from ggext.quality.items import Item
from ggext.quality.needles import answer_loss, sample_maker
from ggext.quality.perplexity import key_tokens, nll, short_nll
from ggext.quality.samples import Sample
from ggext.quality.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.quality.texts import Piece
    from ggext.rope.scaling import RopeScaling
    from ggext.runtime.live_table import LiveTable

#: Questions on a text. One is some tokens next to a text of thousands, and each makes a loss surer.
_NEEDLES = 16
#: Made texts to judge on have their own numbers, however many the search took.
_HELD_OUT = 1 << 16
#: From so many documents on each gives one text; of fewer, several pieces are taken.
_MANY = 10
#: Texts to judge on, at the least: an interval of fewer is too wide to decide anything.
LEAST_HELD_OUT = 5


class Objective(Protocol):
    """Numbered texts of the target's length, and the loss on each by the table that is in use."""

    # What the losses are of.
    name: str
    # What the user should know of them.
    notes: tuple[str, ...]

    # The numbers of the texts to search on and to judge on, in order; more than are needed.
    training: Sequence[int]
    held_out: Sequence[int]
    # Readings of a text before its first loss is known, in readings at the target's length.
    overhead: float

    def loss(self, number: int) -> float | None:
        """The mean loss in nats; None for a text that has no token to ask about. Raises
        CancelledError, ModelError."""

    def nothing_to_ask(self) -> str:
        """Why no text has a loss, and what to do; a sentence without its end."""


class Needles:
    """Answers to questions on facts that stand in a made text, which is read once for all of them.

    Raises UsageError where the vocabulary cannot spell them.
    """

    name = "needles"
    notes: tuple[str, ...] = ()
    training: Sequence[int] = range(_HELD_OUT)
    held_out: Sequence[int] = range(_HELD_OUT, 2 * _HELD_OUT)
    overhead = 0.0

    def __init__(self, bench: Bench, length: int, live: LiveTable) -> None:
        self.live = live
        self._bench = bench
        self._length = length
        # A text costs some hundred tokenizations, and each table is asked about the same ones.
        self._sample = lru_cache(maxsize=64)(self._made)
        try:
            self._make = sample_maker(bench.prompts, needles=_NEEDLES)
            self._sample(0)
        except UsageError as error:
            raise UsageError(
                f"{error}; or give documents to search on (texts)"
            ) from None

    def loss(self, number: int) -> float | None:
        return answer_loss(
            self._bench.session, self._bench.prompts, self._sample(number)
        )

    def nothing_to_ask(self) -> str:
        return "the made texts hold no question"

    def _made(self, number: int) -> Sample:
        rng = Random(f"search {self._bench.options.seed} {self._length} {number}")
        return self._make(TASKS[0], self._length, rng)


class KeyTokens:
    """The key tokens of the user's documents (LongPPL): those that the long context makes likelier
    by 2 nats, and likely.

    Which they are is asked once of each text: the unscaled model says what a short context knows,
    YaRN what a long one does. That favours YaRN, if anything. Raises UsageError for too little
    text.
    """

    name = "key tokens"
    # The windows read their short context again and again; then YaRN reads the whole.
    overhead = 6.0

    def __init__(
        self, bench: Bench, length: int, live: LiveTable, yarn: RopeScaling
    ) -> None:
        self._bench = bench
        self._length = length
        self._live = live
        self._yarn = yarn
        count = self._pieces_there()
        documents = len({self._document(self._piece(i)) for i in range(count)})
        order = list(range(count))
        Random(f"search {bench.options.seed}").shuffle(order)
        self.notes: tuple[str, ...] = ()
        if documents >= _MANY:
            order = self._one_of_each(order)
        else:
            note = (
                f"{count} texts of {documents} documents: they are taken for independent, which "
                "texts of one document are not quite"
            )
            self.notes = (note,)
        third = max(1, len(order) // 3)
        self.training: Sequence[int] = order[:third]
        self.held_out: Sequence[int] = order[third:]
        self._key_tokens = lru_cache(maxsize=64)(self._learn_key_tokens)

    def loss(self, number: int) -> float | None:
        scaling = self._live.scaling
        chosen = self._key_tokens(number)
        if not chosen.any():
            return None
        self._use(scaling)
        losses = nll(self._bench.session, self._piece(number).tokens)
        self._live.check()
        return float(losses[chosen].mean())

    def nothing_to_ask(self) -> str:
        short, _ = short_windows(self._bench.setting)
        return (
            f"the documents have no key token: nothing in {self._length:,} tokens needs more than "
            f"the last {short:,}; give others, or search on needles, without any"
        )

    def _pieces_there(self) -> int:
        bench = self._bench
        least = 1 + LEAST_HELD_OUT
        count = (
            0
            if (bench.longest_text or 0) < self._length
            else bench.pieces(self._length)
        )
        if count < least:
            raise UsageError(
                f"the documents hold {count} texts of {self._length:,} tokens, and a search needs "
                f"{least}: give more, or a shorter target"
            )
        return count

    def _one_of_each(self, order: list[int]) -> list[int]:
        first: dict[str, int] = {}
        for number in order:
            first.setdefault(self._document(self._piece(number)), number)
        return list(first.values())

    def _piece(self, number: int) -> Piece:
        return self._bench.piece(Item("text", "", self._length, number))

    @staticmethod
    def _document(piece: Piece) -> str:
        return piece.name.rpartition("@")[0]

    def _learn_key_tokens(self, number: int) -> NDArray[np.bool_]:
        session = self._bench.session
        tokens = self._piece(number).tokens
        short, window = short_windows(self._bench.setting)
        self._use(None)
        before = short_nll(session, tokens, short, window)
        self._use(self._yarn)
        result = key_tokens(before, nll(session, tokens))
        self._live.check()
        return result

    def _use(self, scaling: RopeScaling | None) -> None:
        self._live.use(scaling)
        self._bench.session.clear()


class ShortTexts:
    """The loss on all tokens of texts that the model needs no scaling for.

    ``training`` and ``held_out``: their numbers, the same where there are few of them.
    """

    _EMBEDDED = 256
    _OWN = 1024
    _TRAINING = 4
    _HELD_OUT = 8

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        most = self._OWN if bench.has_documents else self._EMBEDDED
        text = bench.longest_text
        self.length = min(bench.setting.trained, most, text or most)
        there = bench.pieces(self.length)
        most = self._HELD_OUT + self._TRAINING
        self.held_out: Sequence[int] = range(min(self._HELD_OUT, there))
        self.training: Sequence[int] = range(self._HELD_OUT, most)
        if there < most:
            self.training = self.held_out

    def loss(self, number: int) -> float:
        """The mean loss in nats. Raises CancelledError, ModelError."""
        piece = self._bench.piece(Item("text", "", self.length, number))
        losses = nll(self._bench.session, piece.tokens)
        return math.fsum(losses.tolist()) / len(losses)
