"""What a step is trained on: long rows, rows with a jump in their positions (PoSE), short rows.

A row holds one document, or a part of one: documents never see each other. All of it is a function
of the seed and of the place in the run, so that a run that was interrupted continues with the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.tune.documents import Encoded

Kind = Literal["short", "pose", "long"]
#: Of all rows, so many are short, with the positions that they have anyway (ProLong: less costs
#: quality at short lengths).
SHORT_SHARE = 0.4
#: PoSE takes its two parts from so many windows of a document.
_POSE_WINDOWS = 5
IGNORED = -100  # as a label: not predicted


@dataclass(frozen=True)
class RowOptions:
    """The shapes of a run's rows."""

    # "pose" or "long".
    kind: Kind
    # Tokens of a short row, and of one with a jump.
    window: int
    # Positions that the model is to reach.
    target: int
    # Tokens that are evaluated at once, about.
    at_once: int
    # Token ids at the start of every row.
    prefix: tuple[int, ...] = ()
    seed: int = 0

    def length(self, kind: Kind) -> int:
        """Tokens of a row of that kind, at most."""
        return self.target if kind == "long" else self.window

    def count(self, kind: Kind) -> int:
        """Rows of that kind that are evaluated together."""
        return max(1, self.at_once // self.length(kind))


@dataclass(frozen=True)
class Row:
    """One sequence: tokens, their positions, and what each is to predict (``IGNORED``: nothing)."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]


Batch = dict[str, "NDArray[np.int64]"]


class Rows(Sequence[Batch]):
    """The micro-batches of a run, by their place in it.

    A batch has arrays of shape (rows, tokens): ``input_ids``,
    ``position_ids``, ``attention_mask``, ``labels`` and ``shift_labels``. The mask is always there,
    of ones where no row is shorter: without one transformers takes a jump in the positions for the
    start of another document, and hides what was before it.
    """

    def __init__(
        self, documents: Sequence[Encoded], options: RowOptions, batches: int
    ) -> None:
        self.documents = documents
        self.options = options
        self._batches = batches
        self._parts: dict[Kind, list[tuple[int, int, int]]] = {}

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        if not 0 <= index < self._batches:
            raise IndexError(index)
        kind, place = self._kind(index)
        count = self.options.count(kind)
        return stacked([self.row(kind, place * count + i) for i in range(count)])

    def _kind(self, index: int) -> tuple[Kind, int]:
        """The kind of a batch, and how many of that kind were before it."""
        short = int(index * SHORT_SHARE + 1e-9)
        if int((index + 1) * SHORT_SHARE + 1e-9) > short:
            return "short", short
        return self.options.kind, index - short

    def parts(self, kind: Kind) -> list[tuple[int, int, int]]:
        """(document, first token, end) of all that rows of a kind are made from; long ones of what
        is longer than a window."""
        if kind not in self._parts:
            body = self.options.length(kind) - len(self.options.prefix)
            size = body * _POSE_WINDOWS if kind == "pose" else body
            least = self.options.window if kind == "long" else 0
            self._parts[kind] = [
                (number, start, min(start + size, len(document)))
                for number, document in enumerate(self.documents)
                for start in range(0, max(1, len(document) - 1), size)
                if min(size, len(document) - start) > least
            ]
        return self._parts[kind]

    def row(self, kind: Kind, number: int) -> Row:
        """The ``number``-th of its kind: every part has its turn before one comes again."""
        import numpy as np

        parts = self.parts(kind)
        epoch, place = divmod(number, len(parts))
        order = list(range(len(parts)))
        Random(f"{self.options.seed} {kind} {epoch}").shuffle(order)
        document, start, end = parts[order[place]]
        if kind == "pose":
            return self._with_jump(document, start, end, number)
        return self._row(document, np.arange(start, end))

    def _row(self, document: int, places: NDArray[np.int64]) -> Row:
        """The tokens at some places of a document."""
        import numpy as np

        chosen = self.documents[document]
        prefix = np.array(self.options.prefix, np.int64)
        tokens = np.concatenate([prefix, chosen.tokens[places]])
        labels = np.full(len(tokens), IGNORED, np.int64)
        learned = np.concatenate(
            [np.zeros(len(prefix), np.bool_), chosen.learned[places]]
        )
        labels[:-1][learned[1:]] = tokens[1:][learned[1:]]
        return Row(tokens, np.arange(len(tokens)), labels)

    def _with_jump(self, document: int, start: int, end: int, number: int) -> Row:
        """Two parts of a text, the second as if it stood further on (PoSE; Zhu et al. 2309.10400,
        section 3): the model sees distances up to the target in rows of its own length."""
        import numpy as np

        rng = Random(f"{self.options.seed} pose {number}")
        length = end - start
        size = min(self.options.window - len(self.options.prefix), length)
        if size < 2:
            return self._row(document, np.arange(start, end))
        longest = size - 1 if size == length else (size + 1) // 2
        first = rng.randint(1, longest)
        second = rng.randint(first, length - (size - first))
        places = [np.arange(first), np.arange(second, second + size - first)]
        row = self._row(document, start + np.concatenate(places))
        jump = first + len(self.options.prefix)
        row.positions[jump:] += rng.randint(
            0, max(0, self.options.target - len(row.tokens))
        )
        if second > first:
            row.labels[jump - 1] = IGNORED  # what follows there is not the next word
        return row


def stacked(rows: Sequence[Row]) -> Batch:
    """Rows as arrays of one length, the shorter ones masked at their end."""
    import numpy as np

    length = max(len(row.tokens) for row in rows)
    shape = (len(rows), length)
    tokens = np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    following = np.full(shape, IGNORED, np.int64)
    mask = np.zeros(shape, np.int64)
    for i, row in enumerate(rows):
        size = len(row.tokens)
        tokens[i, :size] = row.tokens
        positions[i, :size] = row.positions
        positions[i, size:] = row.positions[-1]
        following[i, :size] = row.labels
        mask[i, :size] = 1
    return {
        "input_ids": tokens,
        "position_ids": positions,
        "attention_mask": mask,
        "shift_labels": following,
        "labels": np.where(mask, tokens, IGNORED),
    }
